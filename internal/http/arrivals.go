package http

import (
	"slices"
	"sync"
	"time"
)

const (
	// arrivalsKept and arrivalsAge bound what counts as lately: a drain that
	// stands still gets no newer word, so that an older one must not stay for long.
	arrivalsKept = 256
	arrivalsAge  = 3 * time.Second
	// arrivalsLeast is how many say something of the node, rather than of a
	// client that is far away.
	arrivalsLeast = 10
)

// arrivals are how long clients that were moved here lately waited for their
// welcome, as they say. Safe for concurrent use.
type arrivals struct {
	mu   sync.Mutex
	ring [arrivalsKept]arrival
	next int
}

type arrival struct {
	at   time.Time
	took time.Duration
}

func (a *arrivals) note(now time.Time, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ring[a.next] = arrival{now, took}
	a.next = (a.next + 1) % arrivalsKept
}

// p95 is the 95th percentile, 0 when hardly anybody came lately.
func (a *arrivals) p95(now time.Time) time.Duration {
	a.mu.Lock()
	took := make([]time.Duration, 0, arrivalsKept)
	for _, one := range a.ring {
		if now.Sub(one.at) <= arrivalsAge {
			took = append(took, one.took)
		}
	}
	a.mu.Unlock()
	if len(took) < arrivalsLeast {
		return 0
	}
	slices.Sort(took)
	return took[(len(took)*95-1)/100]
}
