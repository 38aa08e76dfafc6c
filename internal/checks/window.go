package checks

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"switchyard/internal/stack"
)

// metricsLimit bounds one query to Prometheus: health is not judged meanwhile.
const metricsLimit = 5 * time.Second

// A MetricsWindow adds up the metrics of a deployment's replicas over a span of
// time.
type MetricsWindow struct {
	// Operations counts frames, handshakes and requests. Errors counts those of
	// them that failed through a fault of the service, not of the client.
	Operations float64 `json:"operations"`
	Errors     float64 `json:"errors"`
	// Publishes counts the publishes with a known duration, and P95 is the 95th
	// percentile of these durations.
	Publishes float64       `json:"publishes"`
	P95       time.Duration `json:"p95"`
	// StoreFailed counts the publications that the log refused, canaries included,
	// and CanaryP95 is the 95th percentile of the canaries' durations. A drained
	// color has both.
	StoreFailed float64       `json:"store_failed"`
	CanaryP95   time.Duration `json:"canary_p95"`
	// MemoryBytes is the largest resident memory of a replica, and Memory its share
	// of the memory limit, from 0 to 1. The caller sets the share: 0 when there is no
	// limit.
	MemoryBytes float64 `json:"-"`
	Memory      float64 `json:"memory"`
	// Replicas is how many replicas have metrics.
	Replicas int `json:"seen"`
}

// ErrorRatio returns the share of operations that failed through a fault of the
// service, from 0 to 1.
func (w MetricsWindow) ErrorRatio() float64 {
	if w.Operations == 0 {
		return 0
	}
	return w.Errors / w.Operations
}

// HostMetrics reads windows from the stack's Prometheus.
type HostMetrics struct {
	*stack.Prometheus
	answered atomic.Pointer[stack.Prometheus] // the one of the last window, if it answered
}

// NewHostMetrics returns the metrics of a stack.
func NewHostMetrics(s *stack.Stack) *HostMetrics { return &HostMetrics{Prometheus: s.Prometheus()} }

// deploymentFilter selects the series of a deployment. Only switchyard_build_info
// has the deployment's id as a label, so the filter joins on the instance.
const deploymentFilter = ` * on (instance) group_left () max by (instance) (switchyard_build_info{deployment="%s"})`

// Window returns the metrics of a span that ends now. It finds Prometheus' address
// again only if the last window failed.
func (h *HostMetrics) Window(ctx context.Context, deployment string, span time.Duration) (w MetricsWindow, err error) {
	prometheus := h.answered.Swap(nil)
	if prometheus == nil {
		if prometheus, err = h.Resolve(ctx); err != nil {
			return w, fmt.Errorf("find Prometheus: %w", err)
		}
	}
	now, filter := time.Now(), fmt.Sprintf(deploymentFilter, deployment)
	query := func(expr string) ([]stack.Sample, error) {
		ctx, cancel := context.WithTimeout(ctx, metricsLimit)
		defer cancel()
		return prometheus.QueryAt(ctx, expr, now)
	}
	increase := func(by, selector string) string {
		return fmt.Sprintf(`sum%s (increase(%s[%ds])%s)`, by, selector, int(span.Seconds()), filter)
	}
	total := func(selectors ...string) string { // one that has no series counts as 0
		for i, selector := range selectors {
			selectors[i] = "(" + increase("", selector) + " or vector(0))"
		}
		return strings.Join(selectors, " + ")
	}
	p95 := func(buckets string) string { return `histogram_quantile(0.95, ` + increase(" by (le)", buckets) + `)` }
	var seconds, canarySeconds float64
	for _, q := range []struct {
		into *float64
		expr string
	}{
		{&w.Operations, total(`websocket_messages_received_total`, `websocket_connections_total{result!~"origin|handshake|too_fast|unauthorized|removed"}`, `http_requests_total{route!~"/(healthz|readyz|metrics|ws)"}`)},
		{&w.Errors, total(`websocket_errors_total{type=~"internal|unavailable"}`, `websocket_connections_total{result="refused"}`, `http_requests_total{route!~"/(healthz|readyz|metrics|ws)",code=~"5.."}`)},
		{&w.Publishes, increase("", `websocket_publish_duration_seconds_count`)},
		{&w.StoreFailed, increase("", `store_failed_total`)},
		{&seconds, p95(`websocket_publish_duration_seconds_bucket`)},
		{&canarySeconds, p95(`websocket_canary_duration_seconds_bucket{leg="local"}`)},
	} {
		samples, err := query(q.expr)
		if err != nil {
			return MetricsWindow{}, err
		}
		if len(samples) > 0 {
			*q.into = samples[0].Value
		}
	}
	w.P95, w.CanaryP95 = time.Duration(seconds*float64(time.Second)), time.Duration(canarySeconds*float64(time.Second))
	resident, err := query(`process_resident_memory_bytes` + filter)
	if err != nil {
		return w, err
	}
	w.Replicas = len(resident)
	for _, s := range resident {
		w.MemoryBytes = max(w.MemoryBytes, s.Value)
	}
	h.answered.Store(prometheus)
	return w, nil
}
