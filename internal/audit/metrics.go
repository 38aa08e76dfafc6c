package audit

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Why a line was dropped: the values of the label reason of audit_dropped_total.
const (
	dropQueue = "queue_full"
	dropWrite = "write_failed"
)

type metrics struct {
	events  *prometheus.CounterVec
	dropped *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "audit_events_total",
			Help: "Events of the audit log, whether a line was written for each or not.",
		}, []string{"event"}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{
			Name: "audit_dropped_total",
			Help: "Lines of the audit log that were dropped, because the queue was full or a write failed.",
		}, []string{"reason"}),
	}
	for _, event := range events {
		m.events.WithLabelValues(string(event))
	}
	for _, reason := range []string{dropQueue, dropWrite} {
		m.dropped.WithLabelValues(reason)
	}
	return m
}
