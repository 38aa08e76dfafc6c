package http

import (
	"net/http"
	"sync"
	"time"

	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// promptRefusals is how many refusals of a user or an address are answered at once. Further
// ones are answered lateBy later, so that who tries again at once does so less often.
var promptRefusals = ratelimit.Limit{PerSecond: 10, Burst: 100}

const (
	lateBy = 2 * time.Second
	// maxLate bounds the refusals that are answered late at a time, which hold a connection
	// each, and maxLateOfCaller those of one user or address. Others are answered at once.
	maxLate         = 1024
	maxLateOfCaller = 128
)

// A lateRefusals delays the refusals of those who call too often. It is safe for concurrent
// use.
type lateRefusals struct {
	now      func() time.Duration
	refusals *ratelimit.Keyed // by user or address
	closing  chan struct{}
	close    func() // ends all waits, and those to come

	mu       sync.Mutex // Protects following.
	late     int
	ofCaller map[string]int
}

func newLateRefusals(now func() time.Duration) *lateRefusals {
	closing := make(chan struct{})
	return &lateRefusals{
		now: now, refusals: ratelimit.NewKeyed(promptRefusals), ofCaller: map[string]int{},
		closing: closing, close: sync.OnceFunc(func() { close(closing) }),
	}
}

// wait waits before a refusal is answered, if its caller has had many. API keys are not
// counted, and neither are refusals that are no fault of the caller.
func (l *lateRefusals) wait(r *http.Request, p *problem) {
	c := callerOf(r)
	caller := readerOf(c.user, c.Network)
	if p.Status >= http.StatusInternalServerError || p.Code == protocol.CodeUnavailable || c.key != "" || caller == "" {
		return
	}
	if l.refusals.Take(caller, l.now(), 1) == 0 || !l.begin(caller) {
		return
	}
	defer l.end(caller)
	expect := r.Header["Expect"]
	clear(r.Header) // it may have ten thousand lines; the answer needs this one
	if expect != nil {
		r.Header["Expect"] = expect
	}
	timer := time.NewTimer(lateBy)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	case <-l.closing:
	}
}

func (l *lateRefusals) begin(caller string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.late >= maxLate || l.ofCaller[caller] >= maxLateOfCaller {
		return false
	}
	l.late++
	l.ofCaller[caller]++
	return true
}

func (l *lateRefusals) end(caller string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late--
	if l.ofCaller[caller]--; l.ofCaller[caller] == 0 {
		delete(l.ofCaller, caller)
	}
}
