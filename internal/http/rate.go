package http

import (
	"sync"
	"time"
)

// A rateLimit is a number of events per second, and a burst after a quiet time. The
// zero value is no limit.
type rateLimit struct{ perSecond, burst int }

// perSecond returns a limit with a burst of two seconds' worth, for clients that
// resume after a pause.
func perSecond(n int) rateLimit { return rateLimit{n, 2 * n} }

// cost returns the time in which the limit allows n events, in nanoseconds.
func (r rateLimit) cost(n int) int64 { return int64(n) * int64(time.Second) / int64(r.perSecond) }

// A gcraState is the used part of a limit, as one number (generic cell rate
// algorithm): the time, in nanoseconds of the server's clock, at which the whole
// burst is available again. A state in the past equals the zero state, so it can
// be dropped.
type gcraState int64

// take uses n events at the time now and returns 0, or returns how long to wait
// until n are available. More than the burst counts as the burst, since it could
// never pass otherwise.
func (g *gcraState) take(r rateLimit, now time.Duration, n int) (wait time.Duration) {
	if r.perSecond <= 0 || n <= 0 {
		return 0
	}
	due := max(int64(*g), int64(now)) + r.cost(min(n, r.burst))
	if late := due - int64(now) - r.cost(r.burst); late > 0 {
		return time.Duration(late)
	}
	*g = gcraState(due)
	return 0
}

// maxLimiterKeys bounds the keys of a keyedLimiter. Each key was used within about
// the last two seconds.
const maxLimiterKeys = 1 << 16

// A keyedLimiter has a state for each key. It drops keys with a full burst. If it
// is full, it drops some others, because names are unlimited. It is safe for
// concurrent use.
type keyedLimiter struct {
	rate rateLimit
	size int

	// mu protects the fields below.
	mu      sync.Mutex
	states  map[string]gcraState
	sweepAt int // the length at which idle keys are swept again
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

// sweep drops the keys that have their full burst. Caller holds mu.
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
	// Each sweep is paid for by as many new keys, or by a quarter of the bound.
	l.sweepAt = min(max(64, 2*len(l.states)), l.size)
}
