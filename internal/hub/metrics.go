package hub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"switchyard/internal/protocol"
)

// Causes of a repair, results of a resume, and reasons of a drop: closed sets for labels. A repair
// is counted for each read; a resume once, when the member is live, as the
// dearest way that it took.
const (
	causeHole     = "hole"     // a later message came first
	causeFeed     = "feed"     // the commit feed knew of more
	causeEpoch    = "epoch"    // a message of another epoch came
	causeOverflow = "overflow" // the inbox or the hold buffer was full
	causeAhead    = "ahead"    // a client knew of more

	resumeRing    = "ring"    // from memory
	resumeLog     = "log"     // from the database
	resumeTrimmed = "trimmed" // in part: the oldest were no longer stored
	resumeEpoch   = "epoch"   // not at all: the positions were void

	dropSignal        = "stale_signal" // it came too late to be worth anything
	dropInbox         = "inbox_full"   // more than a topic may have waiting
	dropReorderBuffer = "hold_full"    // more than may wait for what came before it
)

// metrics belong to one hub: a process may run several. Nothing here is labelled
// by room, user or session, of which there is no end.
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

// newMetrics registers them all.
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
			Help:    "From a publish read to its ack.",
			Buckets: fast,
		}),
		delivery: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "websocket_delivery_duration_seconds",
			Help:    "From a commit until the last member here was handed the message.",
			Buckets: fast,
		}),
		resumes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_resumes_total",
			Help: "Joins with a position, by where the missed messages came from.",
		}, []string{"result"}),
		repairs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "websocket_repairs_total",
			Help: "Fetches from the log to fill what the broker did not bring, by cause.",
		}, []string{"cause"}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hub_dropped_total",
			Help: "Broadcasts not taken by a topic, by reason; the log has them.",
		}, []string{"reason"}),
		topics: f.NewGauge(prometheus.GaugeOpts{
			Name: "hub_topics",
			Help: "Rooms that are live on this node.",
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

// zero makes the counters that alerts watch stand at 0 from the start: the
// first one of a kind would otherwise be no increase, but a new series.
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
// a connection that was ended for one, by its reason. Some are answered here,
// others by who reads the socket: one counter has them all.
func (h *Hub) CountError(kind string) { h.metrics.errors.WithLabelValues(kind).Inc() }

// clientError is how an error is told to a client; it is counted.
func (h *Hub) clientError(err error) *protocol.Error {
	e := protocol.ErrorFor(err)
	h.CountError(e.Code)
	return e
}

// registerCanaryAge tells how old the newest canary is that came back, by leg.
func (*metrics) registerCanaryAge(reg prometheus.Registerer, c *canary) {
	for _, l := range []*leg{&c.local, &c.broker} {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "websocket_canary_age_seconds",
			Help:        "How long ago the newest canary was sent that has come back. It grows while delivery is dead.",
			ConstLabels: prometheus.Labels{"leg": l.name},
		}, func() float64 { return l.age(time.Now()).Seconds() })
	}
}
