package testkit

import (
	"bytes"
	"time"
)

// FaultCounts counts the faults that a proxy has caused, so that a test can check
// that its fault took effect.
type FaultCounts struct {
	Cut              int // open connections reset
	Refused          int // new connections reset
	HalfClosed       int // connections closed in one direction
	Truncated        int // connections closed in the middle of a chunk
	DroppedResponses int // responses dropped, with their connection
	Stalled          int // chunks that waited for Resume
	Delayed          int // chunks that were delayed
}

// FaultCounts returns the faults so far.
func (p *Proxy) FaultCounts() FaultCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Total returns the sum of all counts.
func (c FaultCounts) Total() int {
	return c.Cut + c.Refused + c.HalfClosed + c.Truncated + c.DroppedResponses + c.Stalled + c.Delayed
}

func (p *Proxy) countFault(count func(*FaultCounts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count(&p.counts)
}

// Cut resets all open connections. New ones are accepted.
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

// Stall stops forwarding in both directions, on new connections too, without
// closing any, as when a cable is pulled out. Resume ends it.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.resumed:
		p.resumed = make(chan struct{})
	default:
	}
}

// Swallow drops what open connections send from now on, and keeps them open, as a
// middlebox does that has forgotten them. New connections work.
func (p *Proxy) Swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pair := range p.pairs {
		pair.swallows.Store(true)
	}
}

// Resume ends Stall, and forwards what was read meanwhile.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.resumed:
	default:
		close(p.resumed)
	}
}

// Delay delays every chunk by d; 0 ends it.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// HalfClose closes the direction to the client of all connections: the client reads
// an end of file and may still write.
func (p *Proxy) HalfClose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pair := range p.pairs {
		_ = pair.client.CloseWrite()
		p.counts.HalfClosed++
	}
}

// TruncateAfter forwards n more bytes, of all connections and both directions
// together, and then closes the connection that the last of them went over, in the
// middle of a chunk. If a chunk ends exactly with the n-th byte, the next chunk is
// cut after its first byte.
func (p *Proxy) TruncateAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.truncateAfter = n
}

// A responseDrop is a drop that DropResponse has planned.
type responseDrop struct {
	request, response []byte
	requestedOn       *proxyPair // the connection of the request; nil before it
	refuse            bool
	done              chan struct{} // closed when the response was dropped
}

// DropResponse drops one response: it waits for a request that contains one text,
// and then for the first chunk back on the same connection that contains the other.
// It closes the connection instead of forwarding that chunk, so that the server has
// done the work and the client does not learn of it. With refuse, it closes all
// other connections at the same moment and refuses new ones until Refuse(false).
// The returned channel is closed when that has happened.
func (p *Proxy) DropResponse(request, response string, refuse bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pendingDrop = &responseDrop{
		request: []byte(request), response: []byte(response), refuse: refuse, done: make(chan struct{}),
	}
	return p.pendingDrop.done
}

// dropsResponse reports whether a chunk is the response to drop. The caller holds
// mu.
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

// applyFaults returns the part of a chunk to forward, and whether its connection
// stays open.
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
