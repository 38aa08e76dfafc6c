package sharedstate

import (
	"context"
	"maps"
	"time"
)

// A sharedBucket is the bucket of one user over all nodes, with the rates of its limit.
type sharedBucket struct {
	userBucket
	rates [measureCount]rate
}

// consume does what consume.lua does.
func (m *nodeView) consume(_ context.Context, rates [measureCount]rate, batch []*usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, u := range batch {
		b := m.buckets[u.key]
		if b == nil {
			b = &sharedBucket{userBucket{at: now.Add(-u.ago)}, rates}
			for i, r := range rates {
				b.level[i] = r.burst
			}
			m.buckets[u.key] = b
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
		maps.DeleteFunc(m.buckets, func(_ string, b *sharedBucket) bool {
			b.refill(&b.rates, now)
			return b.isIdle(&b.rates)
		})
		m.bucketsAtSweep = max(len(m.buckets), 1000)
	}
}
