package sharedstate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
)

// What a round trip was for: the closed set of values of the label operation.
const (
	opQuery     = "ask" // for clients that wait: a session to resume, who is in a room
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

// Why something was dropped: the closed set of values of the label reason of
// session_dropped_total.
const (
	dropEventsFull     = "notices_full" // more to tell other nodes than may wait
	dropEventLost      = "notice_lost"  // Redis did not take a notice
	dropEventMalformed = "notice_garbled"
	dropEndsFull       = "ends_full" // a session that ended is kept until it expires
	dropEndLost        = "end_lost"  // the same, since Redis could not be asked
	dropPartial        = "rooms"     // a session with too many rooms is kept without
	dropOldest         = "sessions"  // in process: more sessions than may be kept
	dropEntriesFull    = "seats_full"
	dropTombstonesFull = "vacant_full" // who left is not told one by one, but who is there
	dropBucketsFull    = "users_full"  // one user too many to be limited over all nodes
	dropCoalescerFull  = "pokes_full"  // the same: that any room may have changed is told
)

var dropReasons = []string{
	dropEventsFull, dropEventLost, dropEventMalformed, dropEndsFull, dropEndLost, dropPartial, dropOldest, dropEntriesFull, dropTombstonesFull, dropCoalescerFull,
	dropBucketsFull,
}

// How an attempt to resume ended: the label result of session_resumes_total.
const (
	resumeDone        = "resumed"
	resumeUnknown     = "unknown" // no such session, or of another user
	resumeUnavailable = "away"    // nobody could be asked
)

var saveResults = map[message.SaveResult]string{
	message.SaveDone: "done", message.SaveFailed: "failed",
	message.SaveSuperseded: "superseded", message.SaveMissing: "missing",
}

// metrics of one node. They are made with a registry that is passed in, so
// that several nodes can live in one process. The maps are read only.
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

func newMetrics(reg prometheus.Registerer) *metrics {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "session_operation_duration_seconds",
		Help:    "Round trips to Redis for what nodes share, by what they were for.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	}, []string{"operation"})
	counter := func(name, label, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	failures := counter("session_failures_total", "operation", "Round trips of which some part failed or was refused.")
	resumes := counter("session_resumes_total", "result", "Attempts to resume a session.")
	saves := counter("session_saves_total", "result", "Sessions that were to be kept.")
	dropped := counter("session_dropped_total", "reason", "What was dropped because a bound was reached or Redis was away.")
	m := &metrics{
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "session_up",
			Help: "1 while what nodes share can be reached, else 0.",
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "session_reconnects_total",
			Help: "Connections for notices made after the first one.",
		}),
		presenceEntries: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_seats",
			Help: "Places in rooms that sessions of this node have.",
		}),
		resyncs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_resyncs_total",
			Help: "Shards in which this node told anew who is there, since something was lost.",
		}),
		sweeps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_sweeps_total",
			Help: "Shards in which this node removed what a dead node had left behind.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "limits_refused_total",
			Help: "Publishes refused since their user had spent a limit that counts over all nodes.",
		}),
		limitedUsers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "limits_users",
			Help: "Users whose spending is counted on this node.",
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
		reg.MustRegister(m.up, m.reconnects, m.presenceEntries, m.resyncs, m.sweeps, m.refused, m.limitedUsers, durations, failures, resumes, saves, dropped)
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

func (m *metrics) observe(operation string, took time.Duration, failed bool) {
	m.durations[operation].Observe(took.Seconds())
	if failed {
		m.failures[operation].Inc()
	}
}

func (m *metrics) drop(reason string, n int) {
	if n > 0 {
		m.dropped[reason].Add(float64(n))
	}
}
