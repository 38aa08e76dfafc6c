package http

import (
	"slices"
	"sync"
	"time"
)

const (
	// moveLatencySamples and moveLatencyMaxAge bound the recent latencies. While a
	// drain pauses, no new ones arrive, so old ones must not count for long.
	moveLatencySamples = 256
	moveLatencyMaxAge  = 3 * time.Second
	// minMoveLatencies is how many latencies describe the node, rather than one
	// distant client.
	minMoveLatencies = 10
)

// moveLatencies are the recent times between a moved client's connect and its
// welcome, as clients report them. It is safe for concurrent use.
type moveLatencies struct {
	mu   sync.Mutex
	ring [moveLatencySamples]moveLatency
	next int
}

type moveLatency struct {
	at   time.Time
	took time.Duration
}

// record adds a latency.
func (m *moveLatencies) record(now time.Time, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ring[m.next] = moveLatency{now, took}
	m.next = (m.next + 1) % moveLatencySamples
}

// p95 returns the 95th percentile of the recent latencies, or 0 if there are fewer
// than minMoveLatencies.
func (m *moveLatencies) p95(now time.Time) time.Duration {
	m.mu.Lock()
	took := make([]time.Duration, 0, moveLatencySamples)
	for _, one := range m.ring {
		if now.Sub(one.at) <= moveLatencyMaxAge {
			took = append(took, one.took)
		}
	}
	m.mu.Unlock()
	if len(took) < minMoveLatencies {
		return 0
	}
	slices.Sort(took)
	return took[(len(took)*95-1)/100]
}
