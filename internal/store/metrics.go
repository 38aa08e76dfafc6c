package store

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Why a publication failed: the closed set of values of store_failed_total.
const (
	reasonPending  = "pending"   // too many publications were pending
	reasonTimeout  = "timeout"   // no answer within AppendTimeout
	reasonRejected = "rejected"  // the database refused the data
	reasonConflict = "conflict"  // the id was used with other data
	reasonClosed   = "closed"    // appended after Close
	reasonInvalid  = "invalid"   // an atomic batch was out of bounds
	reasonLocked   = "held"      // another transaction has locked the room's row
	reasonLostFile = "lost_file" // a file of the SQLite database was moved
)

// metrics holds the metrics of one log. With reg it registers gauges, whose
// number depends on the Config.
type metrics struct {
	reg       promauto.Factory
	operation *prometheus.HistogramVec
	batch     prometheus.Histogram
	failed    *prometheus.CounterVec
	trimmed   prometheus.Counter
}

// newMetrics registers the metrics with reg. Several logs of one process need a
// registry each.
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
	for _, reason := range []string{reasonPending, reasonTimeout, reasonRejected, reasonConflict, reasonClosed, reasonInvalid, reasonLocked, reasonLostFile} {
		m.failed.WithLabelValues(reason)
	}
	return m
}

// observe records the duration of an operation that began at began and ends now.
func (m *metrics) observe(operation string, began time.Time) {
	m.operation.WithLabelValues(operation).Observe(time.Since(began).Seconds())
}

// pending registers a gauge that reads count.
func (m *metrics) pending(count *atomic.Int64) {
	m.reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "store_pending_messages",
		Help: "Publications that wait for their commit.",
	}, func() float64 { return float64(count.Load()) })
}

// pool registers the gauges of a connection pool. They call stat at each scrape.
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
