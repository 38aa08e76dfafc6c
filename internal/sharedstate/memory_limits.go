package sharedstate

import (
	"context"
	"maps"
	"time"
)

// consume does what consume.lua does.
func (m *nodeView) consume(_ context.Context, rates [measureCount]rate, batch []*usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, u := range batch {
		b := m.buckets[u.user]
		if b == nil {
			b = &userBucket{at: now.Add(-u.ago)}
			for i, r := range rates {
				b.level[i] = r.burst
			}
			m.buckets[u.user] = b
		}
		if began := now.Add(-u.ago); began.After(b.at) {
			b.refill(&rates, began)
		}
		for i := range rates {
			b.level[i] -= u.spent[i]
		}
		b.refill(&rates, now)
		for i, r := range rates {
			b.level[i] = max(b.level[i], -r.perSecond*maxDebt.Seconds())
		}
		u.level = b.level
	}
	if len(m.buckets) > 2*m.bucketsAtSweep {
		maps.DeleteFunc(m.buckets, func(_ string, b *userBucket) bool {
			b.refill(&rates, now)
			return b.isIdle(&rates)
		})
		m.bucketsAtSweep = max(len(m.buckets), 1000)
	}
}
