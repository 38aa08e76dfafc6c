package client

import (
	"math"
	"time"
)

// A Limit is a limit of the service on one connection: Burst at once, and then
// PerSecond. Left is what was left of the burst at the welcome.
type Limit struct {
	PerSecond int `json:"per_second"`
	Burst     int `json:"burst"`
	Left      int `json:"left"`
}

// Limits are the limits of a connection, by which the client paces itself. One that is
// nil does not apply, or comes from an older service, which reports none.
type Limits struct {
	Publish *Limit `json:"publish,omitempty"` // publishes and signals
	Bytes   *Limit `json:"bytes,omitempty"`   // of all frames
	Join    *Limit `json:"join,omitempty"`    // joins, leaves and other frames
	History *Limit `json:"history,omitempty"` // History and Presence
}

// refusalsApart is the least time between two refusals of a kind, after the first.
const refusalsApart = time.Second

// maxWithoutLimits is how many publishes are in flight at a service that reports no limits,
// so that it refuses no more than these at once. It closes after a thousand.
const maxWithoutLimits = 256

// untilAnswered is the wait of a request that can't be sent before an answer arrives.
const untilAnswered = time.Duration(math.MaxInt64)

// The kinds of requests that have a limit of their own.
type requestKind int

const (
	kindPublish requestKind = iota
	kindHistory             // presence as well
	kindJoin                // leave as well
	requestKinds
)

// An allowance is one limit of the service, as strict as the service may count: what
// was sent counts in full until its answer arrives, because the service has counted it
// by then at the latest. From then on it is paid back by time.
type allowance struct {
	Limit
	paidAt     time.Time // when all that was answered is paid back
	unanswered int
}

func newAllowance(l *Limit, now time.Time) *allowance {
	if l == nil || l.PerSecond <= 0 || l.Burst <= 0 {
		return nil
	}
	a := &allowance{Limit: *l}
	a.paidAt = now.Add(a.time(l.Burst - l.Left))
	return a
}

// wait returns how long n more must wait.
func (a *allowance) wait(n int, now time.Time) time.Duration {
	if a == nil {
		return 0
	}
	unused := a.Burst - a.unanswered - min(n, a.Burst)
	if unused < 0 {
		return untilAnswered
	}
	return max(0, a.paidAt.Sub(now)-a.time(unused))
}

func (a *allowance) sent(n int) {
	if a != nil {
		a.unanswered += min(n, a.Burst)
	}
}

func (a *allowance) answered(n int, now time.Time) {
	if a == nil {
		return
	}
	n = min(n, a.Burst) // more could never be sent otherwise
	a.unanswered -= n
	if a.paidAt.Before(now) {
		a.paidAt = now
	}
	a.paidAt = a.paidAt.Add(a.time(n))
}

// time returns how long the limit takes to allow n.
func (a *allowance) time(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(a.PerSecond)
}

// A gate closes when the service refuses a request with rate_limited all the same,
// because other clients of the same user use up a limit, or because an older service
// tells none. It opens for one request, and then for one more with each round of answers.
type gate struct {
	opensAt   time.Time
	refusedAt time.Time // when the last round was refused
	again     bool      // less than a second after the round before
	bounded   bool      // by width
	width     float64
	// A refusal counts once for all requests of its round, those sent before it.
	round, sentInRound int
}

func (g *gate) wait(now time.Time) time.Duration {
	if g.bounded && float64(g.sentInRound+1) > g.width {
		return untilAnswered
	}
	return g.opensIn(now)
}

func (g *gate) opensIn(now time.Time) time.Duration { return max(0, g.opensAt.Sub(now)) }

func (g *gate) answered(round int) {
	if round == g.round {
		g.sentInRound--
		g.width += 1 / max(g.width, 1)
	}
}

// refused closes the gate for wait or, if it was closed less than a second ago, for a
// second at least, times spread.
func (g *gate) refused(round int, wait time.Duration, spread float64, now time.Time) {
	if round == g.round {
		g.again = now.Sub(g.refusedAt) < refusalsApart
		g.refusedAt, g.opensAt = now, now.Add(wait)
		g.bounded, g.width, g.sentInRound = true, 1, 0
		g.round++
	}
	if at := now.Add(time.Duration(float64(refusalsApart) * spread)); g.again && at.After(g.opensAt) {
		g.opensAt = at
	}
}

// A pacer says when a connection may send its next request of a kind. The zero value
// knows no limits.
type pacer struct {
	allowances [requestKinds]*allowance
	bytes      *allowance
	gates      [requestKinds]gate
	unanswered map[string]pacedRequest // by ref
}

// A pacedRequest is one that was sent and has no answer.
type pacedRequest struct {
	kind  requestKind
	bytes int
	round int // of its gate
}

func newPacer(l *Limits) (p pacer) {
	if l == nil {
		p.gates[kindPublish].bounded, p.gates[kindPublish].width = true, maxWithoutLimits
		return p
	}
	now := time.Now()
	p.bytes = newAllowance(l.Bytes, now)
	for kind, limit := range [requestKinds]*Limit{kindPublish: l.Publish, kindHistory: l.History, kindJoin: l.Join} {
		p.allowances[kind] = newAllowance(limit, now)
	}
	return p
}

// adopt goes on as carefully as the pacer of the connection before: the limits of a user
// are the same there. Nothing but joins was sent on this connection yet.
func (p *pacer) adopt(before *pacer) {
	for _, kind := range []requestKind{kindPublish, kindHistory} {
		if before.gates[kind].bounded {
			p.gates[kind] = before.gates[kind]
			p.gates[kind].sentInRound = 0
		}
	}
}

// wait returns how long a request of that many bytes must wait.
func (p *pacer) wait(kind requestKind, bytes int) time.Duration {
	now := time.Now()
	return max(p.gates[kind].wait(now), p.allowances[kind].wait(1, now), p.bytes.wait(bytes, now))
}

// maySpend reports whether a frame that has no answer may be sent now.
func (p *pacer) maySpend(kind requestKind, bytes int) bool {
	now := time.Now()
	return max(p.gates[kind].opensIn(now), p.allowances[kind].wait(1, now), p.bytes.wait(bytes, now)) == 0
}

// sent counts a request that will be answered with its ref.
func (p *pacer) sent(ref string, kind requestKind, bytes int) {
	if p.unanswered == nil {
		p.unanswered = make(map[string]pacedRequest)
	}
	p.unanswered[ref] = pacedRequest{kind, bytes, p.gates[kind].round}
	p.gates[kind].sentInRound++
	p.allowances[kind].sent(1)
	p.bytes.sent(bytes)
}

// spent counts a frame that has no answer.
func (p *pacer) spent(kind requestKind, bytes int) {
	now := time.Now()
	p.allowances[kind].sent(1)
	p.allowances[kind].answered(1, now)
	p.bytes.sent(bytes)
	p.bytes.answered(bytes, now)
}

// answered counts an answer, whatever it is except rate_limited.
func (p *pacer) answered(ref string) {
	if r, known := p.complete(ref); known {
		p.gates[r.kind].answered(r.round)
	}
}

// refused counts a refusal with rate_limited; the request may be sent again after wait.
func (p *pacer) refused(ref string, wait time.Duration, spread float64) {
	if r, known := p.complete(ref); known {
		p.gates[r.kind].refused(r.round, wait, spread, time.Now())
	}
}

func (p *pacer) complete(ref string) (pacedRequest, bool) {
	r, known := p.unanswered[ref]
	if known {
		now := time.Now()
		delete(p.unanswered, ref)
		p.allowances[r.kind].answered(1, now)
		p.bytes.answered(r.bytes, now)
	}
	return r, known
}
