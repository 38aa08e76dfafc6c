// Package ratelimit enforces rates with a burst: a State limits one connection, and a
// Keyed many keys, such as API keys. It has no clock of its own.
package ratelimit

import (
	"sync"
	"time"
)

// A Limit is a number of events per second, and a burst after a quiet time. A burst
// below 1 counts as 1. The zero value is no limit.
type Limit struct{ PerSecond, Burst int }

// PerSecond returns a limit with a burst of two seconds' worth, for clients that
// resume after a pause.
func PerSecond(n int) Limit { return Limit{n, 2 * n} }

// cost returns the time in which the limit allows n events, in nanoseconds.
func (l Limit) cost(n int) int64 { return int64(n) * int64(time.Second) / int64(l.PerSecond) }

// A State is the used part of a limit, as one number (generic cell rate
// algorithm): the time, in nanoseconds of the caller's clock, at which the whole
// burst is available again. A state in the past equals the zero state, so it can
// be dropped.
type State int64

// Take uses n events at the time now and returns 0, or returns how long to wait
// until n are available. An n above the burst counts as the burst, because it would
// never be available.
func (s *State) Take(l Limit, now time.Duration, n int) (wait time.Duration) {
	if l.PerSecond <= 0 || n <= 0 {
		return 0
	}
	burst := max(1, l.Burst)
	due := max(int64(*s), int64(now)) + l.cost(min(n, burst))
	if late := due - int64(now) - l.cost(burst); late > 0 {
		return time.Duration(late)
	}
	*s = State(due)
	return 0
}

// Reserve uses n events in any case, and returns how long to wait until they would have been
// available. So callers that wait are served in the order of their calls.
func (s *State) Reserve(l Limit, now time.Duration, n int) (wait time.Duration) {
	if l.PerSecond <= 0 {
		return 0
	}
	*s = State(max(int64(*s), int64(now)) + l.cost(n))
	return max(0, time.Duration(s.owed(now)-l.cost(max(1, l.Burst))))
}

// Wait returns how long to wait until one event is available at the time now, without
// using it.
func (s State) Wait(l Limit, now time.Duration) time.Duration { return s.Take(l, now, 1) }

// Left returns how many events a limit allows at once at the time now.
func (s State) Left(l Limit, now time.Duration) int {
	if l.PerSecond <= 0 {
		return 0
	}
	return max(0, max(1, l.Burst)-s.Events(l, now))
}

// Events returns how many events the state has that the time has not paid yet.
func (s State) Events(l Limit, now time.Duration) int {
	// What is owed is at most a burst, so the product is at most 2e18.
	return int((s.owed(now)*int64(l.PerSecond) + int64(time.Second) - 1) / int64(time.Second))
}

// Add adds what other has used, up to a whole burst together.
func (s *State) Add(l Limit, now time.Duration, other State) {
	if owed := other.owed(now); owed > 0 {
		*s = State(int64(now) + min(s.owed(now)+owed, l.cost(max(1, l.Burst))))
	}
}

// Subtract takes back what Add has added of other.
func (s *State) Subtract(now time.Duration, other State) {
	*s = State(int64(now) + max(s.owed(now)-other.owed(now), 0))
}

// owed returns the time until the whole burst is available, in nanoseconds.
func (s State) owed(now time.Duration) int64 { return max(int64(s)-int64(now), 0) }

// IsZero reports whether the whole burst is available.
func (s State) IsZero(now time.Duration) bool { return s.owed(now) == 0 }

// maxKeys bounds the keys of a Keyed. The next sweep drops those that are idle.
const maxKeys = 1 << 16

// A Keyed has a state for each key, all with the same limit. It drops keys with a
// full burst. Over maxKeys it drops keys at random, which start with a full burst
// again, because names are unlimited. It is safe for concurrent use.
type Keyed struct {
	limit Limit
	size  int

	// mu protects the fields below.
	mu      sync.Mutex
	states  map[string]State
	sweepAt int // the length at which idle keys are swept again
}

// NewKeyed returns a Keyed that knows no key yet.
func NewKeyed(l Limit) *Keyed {
	return &Keyed{limit: l, size: maxKeys, states: map[string]State{}, sweepAt: 64}
}

// Limit returns the limit of each key.
func (k *Keyed) Limit() Limit { return k.limit }

// Take is State.Take for a key.
func (k *Keyed) Take(key string, now time.Duration, n int) (wait time.Duration) {
	return k.use(key, now, n, (*State).Take)
}

// Reserve is State.Reserve for a key.
func (k *Keyed) Reserve(key string, now time.Duration, n int) (wait time.Duration) {
	return k.use(key, now, n, (*State).Reserve)
}

// use changes the state of a key by f.
func (k *Keyed) use(key string, now time.Duration, n int, f func(*State, Limit, time.Duration, int) time.Duration) time.Duration {
	if k.limit.PerSecond <= 0 {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s, known := k.states[key]
	if !known && len(k.states) >= k.sweepAt {
		k.sweep(now)
	}
	wait := f(&s, k.limit, now, n)
	k.states[key] = s
	return wait
}

// Used returns the state of a key.
func (k *Keyed) Used(key string) State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.states[key]
}

// sweep drops the keys that have their full burst. Caller holds mu.
func (k *Keyed) sweep(now time.Duration) {
	for key, s := range k.states {
		if int64(s) <= int64(now) {
			delete(k.states, key)
		}
	}
	for key := range k.states {
		if len(k.states) <= k.size/4*3 {
			break
		}
		delete(k.states, key)
	}
	// The next sweep comes after as many new keys as this one kept, or after a quarter
	// of the bound.
	k.sweepAt = min(max(64, 2*len(k.states)), k.size)
}
