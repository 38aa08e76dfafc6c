package http

import (
	"slices"
	"sync"
	"time"
)

const (
	// arrivalsKept and arrivalsAge bound what counts as lately.
	arrivalsKept = 256
	arrivalsAge  = 10 * time.Second
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

// p95 is the 95th percentile, 0 when nobody came lately.
func (a *arrivals) p95(now time.Time) time.Duration {
	a.mu.Lock()
	took := make([]time.Duration, 0, arrivalsKept)
	for _, one := range a.ring {
		if now.Sub(one.at) <= arrivalsAge {
			took = append(took, one.took)
		}
	}
	a.mu.Unlock()
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[(len(took)*95-1)/100]
}
