package http

import (
	"sync"
	"time"
)

// An rateLimit is how much may happen in a second, and how much of it at once
// after a quiet while. The zero allowance is no limit.
type rateLimit struct{ perSecond, burst int }

// perSecond is an allowance whose burst is two seconds' worth: clients that
// come back from a pause have something to say.
func perSecond(n int) rateLimit { return rateLimit{n, 2 * n} }

// cost is the time in which the allowance makes up for n, in nanoseconds.
func (r rateLimit) cost(n int) int64 { return int64(n) * int64(time.Second) / int64(r.perSecond) }

// A gcraState is what somebody has taken of an allowance, as one number: the
// moment, in nanoseconds of the server's clock, at which all of it is made up
// for (the generic cell rate algorithm). What has been idle for long equals the
// zero tally, so that it can be forgotten.
type gcraState int64

// take books n at the moment now, or says how long to wait until n is free.
// What is larger than the burst is booked as the burst: it must pass at some
// time.
func (t *gcraState) take(r rateLimit, now time.Duration, n int) (wait time.Duration) {
	if r.perSecond <= 0 || n <= 0 {
		return 0
	}
	due := max(int64(*t), int64(now)) + r.cost(min(n, r.burst))
	if late := due - int64(now) - r.cost(r.burst); late > 0 {
		return time.Duration(late)
	}
	*t = gcraState(due)
	return 0
}

// maxLimiterKeys is how many keys a ledger knows at most. Each is somebody who has
// taken something in about the last two seconds.
const maxLimiterKeys = 1 << 16

// A keyedLimiter holds a tally for each key. Keys that owe nothing are forgotten; in
// a full ledger somebody is forgotten who does, since there is no end to names.
// Safe for concurrent use.
type keyedLimiter struct {
	rate rateLimit
	size int

	mu sync.Mutex
	// Protects following.
	states  map[string]gcraState
	sweepAt int // the length at which the idle are looked for again
}

func newKeyedLimiter(r rateLimit) *keyedLimiter {
	return &keyedLimiter{rate: r, size: maxLimiterKeys, states: map[string]gcraState{}, sweepAt: 64}
}

func (l *keyedLimiter) take(key string, now time.Duration, n int) (wait time.Duration) {
	if l.rate.perSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t, known := l.states[key]
	if !known && len(l.states) >= l.sweepAt {
		l.sweep(now)
	}
	wait = t.take(l.rate, now, n)
	l.states[key] = t
	return wait
}

// sweep forgets who owes nothing. Caller holds mu.
func (l *keyedLimiter) sweep(now time.Duration) {
	for key, t := range l.states {
		if int64(t) <= int64(now) {
			delete(l.states, key)
		}
	}
	for key := range l.states {
		if len(l.states) <= l.size/4*3 {
			break
		}
		delete(l.states, key)
	}
	// Each look is paid for by as many new keys, or a quarter.
	l.sweepAt = min(max(64, 2*len(l.states)), l.size)
}
