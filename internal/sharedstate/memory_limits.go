package sharedstate

import (
	"context"
	"maps"
	"time"
)

// consume is meter.lua.
func (m *nodeView) consume(_ context.Context, rates [measureCount]rate, batch []*usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, b := range batch {
		s := m.buckets[b.user]
		if s == nil {
			s = &userBucket{at: now.Add(-b.ago)}
			for i, r := range rates {
				s.level[i] = r.burst
			}
			m.buckets[b.user] = s
		}
		if began := now.Add(-b.ago); began.After(s.at) {
			s.refill(&rates, began)
		}
		for i := range rates {
			s.level[i] -= b.spent[i]
		}
		s.refill(&rates, now)
		for i, r := range rates {
			s.level[i] = max(s.level[i], -r.perSecond*maxDebt.Seconds())
		}
		b.level = s.level
	}
	if len(m.buckets) > 2*m.bucketsAtSweep {
		maps.DeleteFunc(m.buckets, func(_ string, s *userBucket) bool {
			s.refill(&rates, now)
			return s.isIdle(&rates)
		})
		m.bucketsAtSweep = max(len(m.buckets), 1000)
	}
}
