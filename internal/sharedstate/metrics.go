package sharedstate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
)

// The operations of a round trip: all values of the label operation.
const (
	opQuery     = "ask" // for waiting clients: to resume a session, to read a room
	opSave      = "save"
	opEnd       = "end"
	opHeartbeat = "beat"
	opEvent     = "notice"
	opBan       = "bar"

	opPresence = "presence"
	opSweep    = "sweep"
	opLimits   = "limits"
)

var operations = []string{opQuery, opSave, opEnd, opHeartbeat, opEvent, opBan, opPresence, opSweep, opLimits}

// The reasons of a drop: all values of the label reason of
// session_dropped_total.
const (
	dropEventsFull     = "notices_full"   // the queue of events to other nodes was full
	dropEventLost      = "notice_lost"    // the backend did not accept an event
	dropEventMalformed = "notice_garbled" // an envelope could not be decoded
	dropEndsFull       = "ends_full"      // the queue was full: the ended session is kept until it expires
	dropEndLost        = "end_lost"       // the same, because the backend did not accept it
	dropPartial        = "rooms"          // a record was too large and is kept without its rooms
	dropOldest         = "sessions"       // in process: the oldest session, over the bound
	dropEntriesFull    = "seats_full"     // a presence entry, over the bound
	dropTombstonesFull = "vacant_full"    // tombstones, over the bound: all shards are resynced
	dropBucketsFull    = "users_full"     // a user over the bound is not limited over all nodes
	dropCoalescerFull  = "pokes_full"     // the changed rooms were too many: one event stands for all rooms
)

var dropReasons = []string{
	dropEventsFull, dropEventLost, dropEventMalformed, dropEndsFull, dropEndLost, dropPartial, dropOldest,
	dropEntriesFull, dropTombstonesFull, dropBucketsFull, dropCoalescerFull,
}

// The results of an attempt to resume: all values of the label result of
// session_resumes_total.
const (
	resumeDone        = "resumed"
	resumeUnknown     = "unknown" // the user has no such session
	resumeUnavailable = "away"    // the backend could not be reached, or refused
)

// saveResults are the values of the label result of session_saves_total.
var saveResults = map[message.SaveResult]string{
	message.SaveDone: "done", message.SaveFailed: "failed",
	message.SaveSuperseded: "superseded", message.SaveMissing: "missing",
}

// metrics are those of one node. The registry is an argument, so that several
// nodes can run in one process. The maps never change.
type metrics struct {
	up              prometheus.Gauge
	durations       map[string]prometheus.Observer // by operation
	failures        map[string]prometheus.Counter  // by operation
	resumes         map[string]prometheus.Counter  // by result
	saves           map[message.SaveResult]prometheus.Counter
	dropped         map[string]prometheus.Counter // by reason
	reconnects      prometheus.Counter
	presenceEntries prometheus.Gauge
	resyncs         prometheus.Counter
	sweeps          prometheus.Counter
	refused         prometheus.Counter
	limitedUsers    prometheus.Gauge
}

// newMetrics registers the metrics, unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "session_operation_duration_seconds",
		Help:    "Round trips to Redis for the shared state, by operation.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	}, []string{"operation"})
	counter := func(name, label, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	failures := counter("session_failures_total", "operation", "Round trips that failed or were refused in part or in whole.")
	resumes := counter("session_resumes_total", "result", "Attempts to resume a session, by result.")
	saves := counter("session_saves_total", "result", "Saves of sessions, by result.")
	dropped := counter("session_dropped_total", "reason", "Items dropped because a bound was reached or Redis was down.")
	m := &metrics{
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "session_up",
			Help: "1 while the shared state can be reached and stores, else 0.",
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "session_reconnects_total",
			Help: "Pub/sub connections made after the first one.",
		}),
		presenceEntries: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_seats",
			Help: "Presence entries of this node's sessions.",
		}),
		resyncs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_resyncs_total",
			Help: "Shards whose entries this node sent again because Redis had lost some.",
		}),
		sweeps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_sweeps_total",
			Help: "Stale tags of a shard that this node removed.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "limits_refused_total",
			Help: "Publishes and reads refused because their user had spent its limit over all nodes.",
		}),
		limitedUsers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "limits_users",
			Help: "Users whose usage is counted on this node.",
		}),
		durations: make(map[string]prometheus.Observer), failures: byLabel(failures, operations...),
		resumes: byLabel(resumes, resumeDone, resumeUnknown, resumeUnavailable),
		saves:   make(map[message.SaveResult]prometheus.Counter), dropped: byLabel(dropped, dropReasons...),
	}
	for _, o := range operations {
		m.durations[o] = durations.WithLabelValues(o)
	}
	for result, name := range saveResults {
		m.saves[result] = saves.WithLabelValues(name)
	}
	if reg != nil {
		reg.MustRegister(m.up, m.reconnects, m.presenceEntries, m.resyncs, m.sweeps, m.refused, m.limitedUsers,
			durations, failures, resumes, saves, dropped)
	}
	return m
}

func byLabel(vec *prometheus.CounterVec, values ...string) map[string]prometheus.Counter {
	all := make(map[string]prometheus.Counter, len(values))
	for _, v := range values {
		all[v] = vec.WithLabelValues(v)
	}
	return all
}

// observe counts a round trip.
func (m *metrics) observe(operation string, took time.Duration, failed bool) {
	m.durations[operation].Observe(took.Seconds())
	if failed {
		m.failures[operation].Inc()
	}
}

// drop counts n dropped items.
func (m *metrics) drop(reason string, n int) {
	if n > 0 {
		m.dropped[reason].Add(float64(n))
	}
}
