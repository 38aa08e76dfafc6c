package hub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"switchyard/internal/protocol"
)

// Causes of a repair, results of a resume and reasons for a drop: closed sets
// of label values. A repair counts once for each read. A resume counts once,
// when the member is live, as the most expensive path it took.
const (
	causeHole     = "hole"     // a later message arrived first
	causeFeed     = "feed"     // the commit feed listed more
	causeEpoch    = "epoch"    // a message of another epoch arrived
	causeOverflow = "overflow" // the inbox was full
	causeAhead    = "ahead"    // a client was ahead of the topic

	resumeRing    = "ring"    // from memory
	resumeLog     = "log"     // from the log
	resumeTrimmed = "trimmed" // from the log, except the oldest, which were no longer stored
	resumeEpoch   = "epoch"   // nothing: the position was invalid

	dropSignal        = "stale_signal" // it was older than maxSignalAge
	dropInbox         = "inbox_full"   // the inbox was full
	dropReorderBuffer = "hold_full"    // the reorder buffer was full
)

// metrics belong to one hub, because a process may run several. No label holds
// a room, user or session, whose number is unbounded.
type metrics struct {
	sent      prometheus.Counter
	publish   prometheus.Histogram
	delivery  prometheus.Histogram
	resumes   *prometheus.CounterVec
	repairs   *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	topics    prometheus.Gauge
	malformed prometheus.Counter
	errors    *prometheus.CounterVec
	canary    *prometheus.HistogramVec
}

// newMetrics registers all metrics.
func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	fast := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	m := &metrics{
		sent: f.NewCounter(prometheus.CounterOpts{
			Name: "websocket_messages_sent_total",
			Help: "Messages and signals handed to sockets.",
		}),
		publish: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_publish_duration_seconds",
			Help:    "From reading a publish to its ack.",
			Buckets: fast,
		}),
		delivery: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_delivery_duration_seconds",
			Help:    "From a commit until the message was handed to the last member on this node.",
			Buckets: fast,
		}),
		resumes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_resumes_total",
			Help: "Joins with a position, by where the missed messages came from.",
		}, []string{"result"}),
		repairs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_repairs_total",
			Help: "Reads of the log for messages that the broker did not bring, by cause.",
		}, []string{"cause"}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hub_dropped_total",
			Help: "Broadcasts that a topic dropped, by reason. The log has the messages among them.",
		}, []string{"reason"}),
		topics: f.NewGauge(prometheus.GaugeOpts{
			Name: "hub_topics",
			Help: "Topics on this node: rooms that have a member, or had one lately.",
		}),
		malformed: f.NewCounter(prometheus.CounterOpts{
			Name: "hub_malformed_payloads_total",
			Help: "Payloads from the broker that could not be read.",
		}),
		errors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_errors_total",
			Help: "Requests answered with an error, by its code, and connections ended for one, by the close reason.",
		}, []string{"type"}),
		canary: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "websocket_canary_duration_seconds",
			Help:    "From the publish of the node's own canary to its arrival at a local member, and back from the broker.",
			Buckets: fast,
		}, []string{"leg"}),
	}
	m.zero()
	return m
}

// zero creates the counters that alerts watch at 0. Otherwise the first event
// would create the series, and no increase would be seen.
func (m *metrics) zero() {
	for _, code := range []string{protocol.CodeUnavailable, protocol.CodeInternal} {
		m.errors.WithLabelValues(code)
	}
	for _, cause := range []string{causeHole, causeFeed, causeEpoch, causeOverflow, causeAhead} {
		m.repairs.WithLabelValues(cause)
	}
	for _, reason := range []string{dropSignal, dropInbox, dropReorderBuffer} {
		m.dropped.WithLabelValues(reason)
	}
}

// CountError counts a request that was answered with an error, by its code, or
// a connection that was ended for one, by its close reason. The hub and the
// HTTP server answer errors and share this counter.
func (h *Hub) CountError(kind string) { h.metrics.errors.WithLabelValues(kind).Inc() }

// clientError counts an error and returns it as the client sees it.
func (h *Hub) clientError(err error) *protocol.Error {
	e := protocol.ErrorFor(err)
	h.CountError(e.Code)
	return e
}

// registerCanaryAge registers the age of the newest canary that arrived, by
// path.
func (*metrics) registerCanaryAge(reg prometheus.Registerer, c *canary) {
	for _, path := range []*canaryPath{&c.local, &c.broker} {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "websocket_canary_age_seconds",
			Help:        "Time since the newest canary message that came back was sent. It grows while delivery is broken.",
			ConstLabels: prometheus.Labels{"leg": path.name},
		}, func() float64 { return path.age(time.Now()).Seconds() })
	}
}
