package session

import (
	"context"
	"maps"
	"time"
)

// meter is meter.lua.
func (m *member) meter(_ context.Context, rates [measures]rate, batch []*spending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, b := range batch {
		s := m.spenders[b.user]
		if s == nil {
			s = &spender{at: now.Add(-b.ago)}
			for i, r := range rates {
				s.level[i] = r.burst
			}
			m.spenders[b.user] = s
		}
		if began := now.Add(-b.ago); began.After(s.at) {
			s.refill(&rates, began)
		}
		for i := range rates {
			s.level[i] -= b.spent[i]
		}
		s.refill(&rates, now)
		for i, r := range rates {
			s.level[i] = max(s.level[i], -r.each*maxDebt.Seconds())
		}
		b.level = s.level
	}
	if len(m.spenders) > 2*m.spendersLeft {
		maps.DeleteFunc(m.spenders, func(_ string, s *spender) bool {
			s.refill(&rates, now)
			return s.isIdle(&rates)
		})
		m.spendersLeft = max(len(m.spenders), 1000)
	}
}
