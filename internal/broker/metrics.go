package broker

import "github.com/prometheus/client_golang/prometheus"

// Why a broadcast was dropped: the closed set of values of the label reason
// of broker_dropped_total.
const (
	dropFull   = "full"   // the queue was full, and this was the oldest
	dropDown   = "down"   // the same, while Redis could not be reached
	dropStale  = "stale"  // it had waited longer than staleAfter
	dropFailed = "failed" // Redis did not confirm it, whether it arrived or not
	dropClosed = "closed" // published after Close, or still queued at the end of Close
)

// metrics holds the metrics of one broker. Several brokers of one process need
// a registry each.
type metrics struct {
	up         prometheus.Gauge
	publish    prometheus.Histogram
	reconnects prometheus.Counter
	dropped    map[string]prometheus.Counter // by reason, read only
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "broker_up",
			Help: "1 while the broker's connection answers, else 0.",
		}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "broker_publish_duration_seconds",
			Help:    "From queueing the oldest publication of a round trip to the broker's answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "broker_reconnects_total",
			Help: "Connections to the broker made after the first one.",
		}),
		dropped: make(map[string]prometheus.Counter),
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "broker_dropped_total",
		Help: "Publications that did not go by the broker, by reason. Messages are delivered through the log nevertheless.",
	}, []string{"reason"})
	for _, reason := range []string{dropFull, dropDown, dropStale, dropFailed, dropClosed} {
		m.dropped[reason] = dropped.WithLabelValues(reason)
	}
	if reg != nil {
		reg.MustRegister(m.up, m.publish, m.reconnects, dropped)
	}
	return m
}

// drop counts n dropped broadcasts.
func (m *metrics) drop(reason string, n int) {
	if n > 0 {
		m.dropped[reason].Add(float64(n))
	}
}
