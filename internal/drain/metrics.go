package drain

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are about the drains and moves of one node. A process may run several.
type metrics struct {
	draining prometheus.Gauge
	deadline prometheus.Gauge
	moves    *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		draining: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_draining",
			Help: "1 from the beginning of a drain until it is canceled.",
		}),
		deadline: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_drain_deadline_timestamp_seconds",
			Help: "When the running drain closes the remaining clients, as Unix time; 0 without a drain. A drain that is not done much later is stuck.",
		}),
		moves: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_moves_total",
			Help: "Clients of a draining node, by result: asked to move, then moved, closed at the deadline, or lost.",
		}, []string{"result"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_drain_duration_seconds",
			Help:    "From the beginning of a drain until the node was empty.",
			Buckets: []float64{.1, .5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600},
		}),
	}
	for _, result := range []string{moveAsked, moveDone, moveClosed, moveLost} {
		m.moves.WithLabelValues(result)
	}
	return m
}

// drainStarted shows that a drain runs, and its deadline.
func (m *metrics) drainStarted(deadline time.Time) {
	m.draining.Set(1)
	m.deadline.Set(float64(deadline.UnixMilli()) / 1000)
}

func (m *metrics) drainEnded() {
	m.draining.Set(0)
	m.deadline.Set(0)
}
