package http

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are those of one server. A process may run several.
type metrics struct {
	active          prometheus.Gauge
	connections     *prometheus.CounterVec
	disconnections  *prometheus.CounterVec
	handshake       prometheus.Histogram
	lifetime        prometheus.Histogram
	received        *prometheus.CounterVec
	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	drainMetrics
	httpConnMetrics
	auditMetrics
}

// drainMetrics are about drains and moves.
type drainMetrics struct {
	draining      prometheus.Gauge
	drainDeadline prometheus.Gauge
	moves         *prometheus.CounterVec
	drainDuration prometheus.Histogram
}

func newDrainMetrics(f promauto.Factory) drainMetrics {
	m := drainMetrics{
		draining: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_draining",
			Help: "1 while the node lets go of its clients, and until that is taken back.",
		}),
		drainDeadline: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_drain_deadline_timestamp_seconds",
			Help: "When the drain under way closes who is still here, as Unix time; 0 while none is. Who is here much later is stuck.",
		}),
		moves: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_moves_total",
			Help: "Clients of a draining node: told to move, and what became of them: moved, closed at the deadline, or lost.",
		}, []string{"result"}),
		drainDuration: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_drain_duration_seconds",
			Help:    "From the begin of a drain until the node was empty.",
			Buckets: []float64{.1, .5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600},
		}),
	}
	for _, result := range []string{moveTold, moveDone, moveClosed, moveLost} {
		m.moves.WithLabelValues(result)
	}
	return m
}

// drainStarted shows that a drain runs, and its deadline.
func (m *drainMetrics) drainStarted(deadline time.Time) {
	m.draining.Set(1)
	m.drainDeadline.Set(float64(deadline.UnixMilli()) / 1000)
}

func (m *drainMetrics) drainEnded() {
	m.draining.Set(0)
	m.drainDeadline.Set(0)
}

// httpConnMetrics are about connections that are not a WebSocket.
type httpConnMetrics struct {
	httpConnsRefused prometheus.Counter
}

func newHTTPConnMetrics(f promauto.Factory) httpConnMetrics {
	return httpConnMetrics{
		httpConnsRefused: f.NewCounter(prometheus.CounterOpts{
			Name: "http_connections_refused_total",
			Help: "Connections closed before a byte was read, since too many that are no WebSocket were open.",
		}),
	}
}

func newMetrics(reg prometheus.Registerer, queued func() float64) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "websocket_queue_bytes",
		Help: "Bytes waiting for clients to read, over all connections.",
	}, queued)
	return &metrics{
		active: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_active_connections",
			Help: "Open WebSocket connections.",
		}),
		connections: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_connections_total",
			Help: "Handshakes, by result.",
		}, []string{"result"}),
		disconnections: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_disconnections_total",
			Help: "Ended connections, by reason.",
		}, []string{"reason"}),
		handshake: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_handshake_duration_seconds",
			Help:    "From the request read to the welcome queued.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
		lifetime: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_connection_duration_seconds",
			Help:    "How long connections lived.",
			Buckets: []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600},
		}),
		drainMetrics:    newDrainMetrics(f),
		httpConnMetrics: newHTTPConnMetrics(f),
		auditMetrics:    newAuditMetrics(f),
		received: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_messages_received_total",
			Help: "Frames from clients, by type; other for those that could not be read.",
		}, []string{"type"}),
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total",
			Help: "HTTP requests, by route, method and status code.",
		}, []string{"route", "method", "code"}),
		requestDuration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "http_request_duration_seconds",
			Help:    "HTTP requests, by route.",
			Buckets: prometheus.DefBuckets,
		}, []string{"route"}),
	}
}

// auditMetrics are about the audit log.
type auditMetrics struct {
	events  *prometheus.CounterVec
	dropped *prometheus.CounterVec
}

func newAuditMetrics(f promauto.Factory) auditMetrics {
	m := auditMetrics{
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "audit_events_total",
			Help: "What the audit log is about, by event, whether a line of its own was written or not.",
		}, []string{"event"}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{
			Name: "audit_dropped_total",
			Help: "Lines of the audit log that are missing: the queue was full, or they could not be written.",
		}, []string{"reason"}),
	}
	for _, event := range auditEvents {
		m.events.WithLabelValues(event)
	}
	for _, reason := range []string{dropQueue, dropWrite} {
		m.dropped.WithLabelValues(reason)
	}
	return m
}
