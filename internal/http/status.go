package http

import (
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
)

// A meter counts events and tells how many a second there lately were. Safe
// for concurrent use.
type meter struct {
	count atomic.Int64

	mu   sync.Mutex
	at   time.Time
	seen int64
	rate float64
}

// perSecond is the rate since it was asked last, or before that, where the two
// are less than half a second apart.
func (m *meter) perSecond(now time.Time) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := m.count.Load()
	passed := now.Sub(m.at)
	if passed < time.Second/2 {
		return m.rate
	}
	if !m.at.IsZero() {
		m.rate = float64(count-m.seen) / passed.Seconds()
	}
	m.at, m.seen = now, count
	return m.rate
}

// Status is what the node tells the others about itself.
func (s *Server) Status() message.NodeStatus {
	now := time.Now()
	rate, moved, refused := s.handshakes.perSecond(now), s.came.perSecond(now), s.refused.perSecond(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	draining, leaving := s.drain != nil || s.stopping, 0
	if s.drain.at() == phaseMoving {
		leaving = int(s.drain.left.Load())
	}
	return message.NodeStatus{
		Node:              s.cfg.Node,
		Deployment:        s.cfg.Deployment,
		Color:             s.cfg.Color,
		Version:           s.cfg.Version,
		Ready:             !draining && !s.lacking(),
		Draining:          draining,
		Connections:       s.roster.connected,
		HandshakeRate:     rate,
		HandshakesMoved:   moved,
		HandshakesRefused: refused,
		HandshakeLimit:    float64(s.cfg.MaxHandshakeRate),
		HandshakeP95:      s.arrivals.p95(now),
		Moved:             s.told.Load(),
		Leaving:           leaving,
	}
}

// lacking says whether a part that the node needs is not up.
func (s *Server) lacking() bool {
	for _, c := range s.cfg.Ready() {
		if c.Needed && c.State != "up" {
			return true
		}
	}
	return false
}
