package http

import (
	"slices"
	"sync"
	"time"
)

const (
	// moveLatencySamples and moveLatencyMaxAge bound what counts as lately: a drain that
	// stands still gets no newer word, so that an older one must not stay for long.
	moveLatencySamples = 256
	moveLatencyMaxAge  = 3 * time.Second
	// minMoveLatencies is how many say something of the node, rather than of a
	// client that is far away.
	minMoveLatencies = 10
)

// moveLatencies are how long clients that were moved here lately waited for their
// welcome, as they say. Safe for concurrent use.
type moveLatencies struct {
	mu   sync.Mutex
	ring [moveLatencySamples]moveLatency
	next int
}

type moveLatency struct {
	at   time.Time
	took time.Duration
}

func (a *moveLatencies) record(now time.Time, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ring[a.next] = moveLatency{now, took}
	a.next = (a.next + 1) % moveLatencySamples
}

// p95 is the 95th percentile, 0 when hardly anybody came lately.
func (a *moveLatencies) p95(now time.Time) time.Duration {
	a.mu.Lock()
	took := make([]time.Duration, 0, moveLatencySamples)
	for _, one := range a.ring {
		if now.Sub(one.at) <= moveLatencyMaxAge {
			took = append(took, one.took)
		}
	}
	a.mu.Unlock()
	if len(took) < minMoveLatencies {
		return 0
	}
	slices.Sort(took)
	return took[(len(took)*95-1)/100]
}
