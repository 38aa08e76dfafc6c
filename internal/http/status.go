package http

import (
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
)

// A meter counts events and returns their recent rate. It is safe for concurrent
// use.
type meter struct {
	count atomic.Int64

	mu           sync.Mutex
	sampledAt    time.Time
	sampledCount int64
	rate         float64
}

// perSecond returns the rate since the last call, or the rate of that call if it
// was less than half a second ago.
func (m *meter) perSecond(now time.Time) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := m.count.Load()
	passed := now.Sub(m.sampledAt)
	if passed < time.Second/2 {
		return m.rate
	}
	if !m.sampledAt.IsZero() {
		m.rate = float64(count-m.sampledCount) / passed.Seconds()
	}
	m.sampledAt, m.sampledCount = now, count
	return m.rate
}

// Status returns what the node publishes about itself to the other nodes.
func (s *Server) Status() message.NodeStatus {
	now := time.Now()
	rate, moved, refused := s.handshakes.perSecond(now), s.handshakesMoved.perSecond(now), s.handshakesRefused.perSecond(now)
	d := s.drain.Status()
	return message.NodeStatus{
		Node:              s.cfg.Node,
		Deployment:        s.cfg.Deployment,
		Color:             s.cfg.Color,
		Version:           s.cfg.Version,
		Ready:             !d.Draining && !s.missesComponent(),
		Draining:          d.Draining,
		Connections:       s.admission.Count(),
		HandshakeRate:     rate,
		HandshakesOfMoved: moved,
		HandshakesRefused: refused,
		HandshakeLimit:    float64(s.cfg.MaxHandshakeRate),
		HandshakeP95:      s.moveLatencies.p95(now),
		MovesAsked:        d.MovesAsked,
		Leaving:           d.Leaving,
	}
}

// missesComponent reports whether a needed component is not up.
func (s *Server) missesComponent() bool {
	for _, c := range s.cfg.Components() {
		if c.Needed && c.State != "up" {
			return true
		}
	}
	return false
}
