package testkit

import (
	"bytes"
	"time"
)

// A FaultCounts counts what a proxy has done to those who talk through it. A test of
// a fault looks here whether the fault was one.
type FaultCounts struct {
	Cut              int // connections reset
	Refused          int // new connections reset
	HalfClosed       int // connections ended in one direction
	Truncated        int // connections closed amid what was being sent
	DroppedResponses int // answers that were swallowed, with their connection
	Stalled          int // pieces of bytes that waited for Resume
	Delayed          int // pieces of bytes that came late
}

// FaultCounts returns what was done so far.
func (p *Proxy) FaultCounts() FaultCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Total is all of it.
func (h FaultCounts) Total() int {
	return h.Cut + h.Refused + h.HalfClosed + h.Truncated + h.DroppedResponses + h.Stalled + h.Delayed
}

func (p *Proxy) countFault(count func(*FaultCounts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count(&p.counts)
}

// Cut resets all connections. New ones are accepted as before.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pair := range p.pairs {
		_ = pair.client.SetLinger(0)
		_ = pair.server.SetLinger(0)
		pair.close()
		p.counts.Cut++
	}
}

// Refuse resets new connections as long as on is true.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Stall holds all bytes back, in both directions and on new connections too,
// without a word to either side: a cable pulled out. Resume lets them pass.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.resumed:
		p.resumed = make(chan struct{})
	default:
	}
}

// Resume ends Stall.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.resumed:
	default:
		close(p.resumed)
	}
}

// Delay holds every piece read back by d before it is written on.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// HalfClose ends the direction towards the client of all connections: it reads
// an end of file and may go on writing.
func (p *Proxy) HalfClose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pair := range p.pairs {
		_ = pair.client.CloseWrite()
		p.counts.HalfClosed++
	}
}

// TruncateAfter lets n more bytes pass, of all connections and both directions
// together, and then closes the connection that it was sending on, in the
// middle of what it sent. Where a piece ends with the n-th byte, the next one
// is torn after its first.
func (p *Proxy) TruncateAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.truncateAfter = n
}

// An responseDrop is what DropResponse plans.
type responseDrop struct {
	request, response []byte
	requestedOn       *proxyPair // where the question was
	refuse            bool
	done              chan struct{}
}

// DropResponse waits for a question that holds one text, and then for the answer
// on that connection that holds another. It passes none of this answer on and
// cuts the connection: the server has done what it was asked, and the client
// will not hear. With refuse, all other connections are cut at the same moment
// and new ones refused, until Refuse(false). The channel is closed then.
func (p *Proxy) DropResponse(request, response string, refuse bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pendingDrop = &responseDrop{
		request: []byte(request), response: []byte(response), refuse: refuse, done: make(chan struct{}),
	}
	return p.pendingDrop.done
}

// dropsResponse says whether a piece is the answer to lose. The caller holds mu.
func (p *Proxy) dropsResponse(pair *proxyPair, toClient bool, chunk []byte) bool {
	drop := p.pendingDrop
	switch {
	case drop == nil:
		return false
	case !toClient:
		if bytes.Contains(chunk, drop.request) {
			drop.requestedOn = pair
		}
		return false
	case drop.requestedOn != pair || !bytes.Contains(chunk, drop.response):
		return false
	}
	p.pendingDrop = nil
	p.counts.DroppedResponses++
	if drop.refuse {
		p.refuse = true
		for other := range p.pairs {
			if other != pair {
				other.close()
			}
		}
	}
	close(drop.done)
	return true
}

// applyFaults returns what of a piece is passed on, and whether its connection lives.
func (p *Proxy) applyFaults(pair *proxyPair, toClient bool, chunk []byte) (forward []byte, keepOpen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dropsResponse(pair, toClient, chunk):
		return nil, false
	case p.truncateAfter == 0:
		return chunk, true
	case p.truncateAfter < len(chunk):
		chunk = chunk[:p.truncateAfter]
		p.truncateAfter = 0
		p.counts.Truncated++
		return chunk, false
	}
	p.truncateAfter = max(1, p.truncateAfter-len(chunk))
	return chunk, true
}
