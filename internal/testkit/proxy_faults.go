package testkit

import (
	"bytes"
	"time"
)

// A Harm counts what a proxy has done to those who talk through it. A test of
// a fault looks here whether the fault was one.
type Harm struct {
	Cut        int // connections reset
	Refused    int // new connections reset
	HalfClosed int // connections ended in one direction
	Torn       int // connections closed amid what was being sent
	Lost       int // answers that were swallowed, with their connection
	Held       int // pieces of bytes that waited for Resume
	Delayed    int // pieces of bytes that came late
}

// Harm returns what was done so far.
func (p *Proxy) Harm() Harm {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.harm
}

// Total is all of it.
func (h Harm) Total() int {
	return h.Cut + h.Refused + h.HalfClosed + h.Torn + h.Lost + h.Held + h.Delayed
}

func (p *Proxy) hurt(count func(*Harm)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count(&p.harm)
}

// Cut resets all connections. New ones are accepted as before.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pair := range p.pairs {
		_ = pair.client.SetLinger(0)
		_ = pair.server.SetLinger(0)
		pair.close()
		p.harm.Cut++
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
		p.harm.HalfClosed++
	}
}

// Tear lets n more bytes pass, of all connections and both directions
// together, and then closes the connection that it was sending on, in the
// middle of what it sent. Where a piece ends with the n-th byte, the next one
// is torn after its first.
func (p *Proxy) Tear(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tear = n
}

// An answerLoss is what LoseAnswer plans.
type answerLoss struct {
	question, answer []byte
	asked            *proxyPair // where the question was
	refuse           bool
	done             chan struct{}
}

// LoseAnswer waits for a question that holds one text, and then for the answer
// on that connection that holds another. It passes none of this answer on and
// cuts the connection: the server has done what it was asked, and the client
// will not hear. With refuse, all other connections are cut at the same moment
// and new ones refused, until Refuse(false). The channel is closed then.
func (p *Proxy) LoseAnswer(question, answer string, refuse bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loss = &answerLoss{
		question: []byte(question), answer: []byte(answer), refuse: refuse, done: make(chan struct{}),
	}
	return p.loss.done
}

// loses says whether a piece is the answer to lose. The caller holds mu.
func (p *Proxy) loses(pair *proxyPair, toClient bool, piece []byte) bool {
	loss := p.loss
	switch {
	case loss == nil:
		return false
	case !toClient:
		if bytes.Contains(piece, loss.question) {
			loss.asked = pair
		}
		return false
	case loss.asked != pair || !bytes.Contains(piece, loss.answer):
		return false
	}
	p.loss = nil
	p.harm.Lost++
	if loss.refuse {
		p.refuse = true
		for other := range p.pairs {
			if other != pair {
				other.close()
			}
		}
	}
	close(loss.done)
	return true
}

// spoil returns what of a piece is passed on, and whether its connection lives.
func (p *Proxy) spoil(pair *proxyPair, toClient bool, piece []byte) (pass []byte, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.loses(pair, toClient, piece):
		return nil, false
	case p.tear == 0:
		return piece, true
	case p.tear < len(piece):
		piece = piece[:p.tear]
		p.tear = 0
		p.harm.Torn++
		return piece, false
	}
	p.tear = max(1, p.tear-len(piece))
	return piece, true
}
