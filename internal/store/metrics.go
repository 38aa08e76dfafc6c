package store

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Why a publication failed: the closed set of values of store_failed_total.
const (
	reasonPending  = "pending"  // too much waited already
	reasonTimeout  = "timeout"  // no answer within AppendTimeout
	reasonRejected = "rejected" // the database refused what it holds
	reasonConflict = "conflict" // the id was used with other data
	reasonClosed   = "closed"   // appended after Close
	reasonInvalid  = "invalid"  // a batch beyond its bounds
	reasonLocked   = "held"     // another transaction holds the room's row
)

// metrics are the log's own. reg adds those whose number depends on Config.
type metrics struct {
	reg       promauto.Factory
	operation *prometheus.HistogramVec
	batch     prometheus.Histogram
	failed    *prometheus.CounterVec
	trimmed   prometheus.Counter
}

// newMetrics takes the registry, as several logs may live in one process.
func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		reg: f,
		operation: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "store_operation_duration_seconds",
			Help:    "How long an operation of the log took, whether it succeeded or not.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16), // 0.25 ms to 8 s
		}, []string{"operation"}),
		batch: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "store_batch_messages",
			Help:    "How many publications a commit held.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 9), // to batchMessages
		}),
		failed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "store_failed_total",
			Help: "Publications that the log did not store, by reason.",
		}, []string{"reason"}),
		trimmed: f.NewCounter(prometheus.CounterOpts{
			Name: "store_trimmed_messages_total",
			Help: "Messages that this node removed because retention keeps them no longer.",
		}),
	}
	for _, reason := range []string{reasonPending, reasonTimeout, reasonRejected, reasonConflict, reasonClosed, reasonInvalid, reasonLocked} {
		m.failed.WithLabelValues(reason)
	}
	return m
}

// observe is called when an operation ends, with when it began.
func (m *metrics) observe(operation string, began time.Time) {
	m.operation.WithLabelValues(operation).Observe(time.Since(began).Seconds())
}

// pending exposes a count that others keep.
func (m *metrics) pending(count *atomic.Int64) {
	m.reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "store_pending_messages",
		Help: "Publications that wait for their commit.",
	}, func() float64 { return float64(count.Load()) })
}

// pool exposes a connection pool; stat is called at each scrape.
func (m *metrics) pool(name string, stat func() (used, idle, limit int)) {
	labels := prometheus.Labels{"pool": name}
	gauge := func(metric, help string, pick func(used, idle, limit int) int) {
		m.reg.NewGaugeFunc(prometheus.GaugeOpts{Name: metric, Help: help, ConstLabels: labels},
			func() float64 { return float64(pick(stat())) })
	}
	gauge("store_pool_used", "Connections in use.", func(used, _, _ int) int { return used })
	gauge("store_pool_idle", "Connections that wait for work.", func(_, idle, _ int) int { return idle })
	gauge("store_pool_max", "Connections the pool may open.", func(_, _, limit int) int { return limit })
}
