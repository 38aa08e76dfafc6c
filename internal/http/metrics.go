package http

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"switchyard/internal/conn"
	"switchyard/internal/protocol"
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
	memoryCloses    prometheus.Counter
	httpConnMetrics
}

// httpConnMetrics are about connections that are not a WebSocket.
type httpConnMetrics struct {
	httpConnsRefused prometheus.Counter
	acceptErrors     prometheus.Counter
	connectionsLimit prometheus.Gauge
}

func newHTTPConnMetrics(f promauto.Factory) httpConnMetrics {
	return httpConnMetrics{
		httpConnsRefused: f.NewCounter(prometheus.CounterOpts{
			Name: "http_connections_refused_total",
			Help: "Connections that were closed because too many without a WebSocket were open.",
		}),
		acceptErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "http_accept_errors_total",
			Help: "Failures to accept a connection, such as for lack of descriptors.",
		}),
		connectionsLimit: f.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_connections_limit",
			Help: "The most open WebSockets: MAX_CONNECTIONS, or fewer if the limit of open files or the memory does not allow them.",
		}),
	}
}

func newMetrics(reg prometheus.Registerer, memory *conn.Budget) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "websocket_queue_bytes",
		Help: "Bytes waiting for clients to read, of all connections.",
	}, func() float64 { return float64(memory.Queued()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "websocket_queue_memory_bytes",
		Help: "Memory of the frames that wait for clients to read. A frame that waits for many counts once. QUEUE_TOTAL_BYTES bounds it.",
	}, func() float64 { return float64(memory.Held()) })
	return &metrics{
		memoryCloses: f.NewCounter(prometheus.CounterOpts{
			Name: "websocket_memory_closes_total",
			Help: "Clients that were closed for lack of memory (QUEUE_TOTAL_BYTES): with 4208 because much waited for them, with 4103 because a large frame of theirs could not be read.",
		}),
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
			Help: "Connections that ended, by reason.",
		}, []string{"reason"}),
		handshake: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_handshake_duration_seconds",
			Help:    "From the request read to the welcome queued.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
		lifetime: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_connection_duration_seconds",
			Help:    "How long connections were open.",
			Buckets: []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600},
		}),
		httpConnMetrics: newHTTPConnMetrics(f),
		received: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_messages_received_total",
			Help: "Frames from clients, by type; other for malformed and unknown ones.",
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

// countReceived limits the label to known types.
func (m *metrics) countReceived(t protocol.Type) {
	switch t {
	case protocol.TypeJoin, protocol.TypeLeave, protocol.TypePublish, protocol.TypeSignal, protocol.TypeHistory,
		protocol.TypePresence, protocol.TypeAuth, protocol.TypeMoved, protocol.TypePing:
		m.received.WithLabelValues(string(t)).Inc()
	default:
		m.received.WithLabelValues("other").Inc()
	}
}
