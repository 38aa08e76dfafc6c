package deploy

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"switchyard/internal/stack"
)

// metricsLimit bounds one query to Prometheus: health is not judged meanwhile.
const metricsLimit = 5 * time.Second

// HostMetrics implements Metrics with the stack's Prometheus.
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
	query := windowQuery{prometheus, deployment, fmt.Sprintf("%ds", int(span.Seconds())), time.Now()}
	for _, q := range []struct {
		into  *float64
		query string
	}{
		{&w.Operations, `(` + query.sum(`websocket_messages_received_total`) + ` or vector(0)) + (` + query.sum(`websocket_connections_total{result!~"origin|handshake|too_fast|unauthorized|removed"}`) +
			` or vector(0)) + (` + query.sum(`http_requests_total{route!~"/(healthz|readyz|metrics|ws)"}`) + ` or vector(0))`},
		{&w.Errors, `(` + query.sum(`websocket_errors_total{type=~"internal|unavailable"}`) + ` or vector(0)) + (` +
			query.sum(`websocket_connections_total{result="refused"}`) + ` or vector(0)) + (` +
			query.sum(`http_requests_total{route!~"/(healthz|readyz|metrics|ws)",code=~"5.."}`) + ` or vector(0))`},
		{&w.Publishes, query.sum(`websocket_publish_duration_seconds_count`)},
		{&w.StoreFailed, query.sum(`store_failed_total`)},
	} {
		if *q.into, err = query.number(ctx, q.query); err != nil {
			return MetricsWindow{}, err
		}
	}
	if w.P95, err = query.p95(ctx, `websocket_publish_duration_seconds_bucket`); err != nil {
		return MetricsWindow{}, err
	}
	if w.CanaryP95, err = query.p95(ctx, `websocket_canary_duration_seconds_bucket{leg="local"}`); err != nil {
		return MetricsWindow{}, err
	}
	samples, err := query.samples(ctx, `process_resident_memory_bytes`+fmt.Sprintf(deploymentFilter, deployment))
	if err != nil {
		return MetricsWindow{}, err
	}
	w.Replicas = len(samples)
	for _, s := range samples {
		w.MemoryBytes = max(w.MemoryBytes, s.Value)
	}
	h.answered.Store(prometheus)
	return w, nil
}

// A windowQuery holds the parameters that the queries of one window share.
type windowQuery struct {
	prometheus *stack.Prometheus
	deployment string
	span       string
	at         time.Time
}

// sum returns the expression for a counter's increase on all replicas.
func (q windowQuery) sum(selector string) string {
	return fmt.Sprintf(`sum(increase(%s[%s])`+deploymentFilter+`)`, selector, q.span, q.deployment)
}

// p95 returns the 95th percentile of a histogram's durations, 0 if there are none.
func (q windowQuery) p95(ctx context.Context, buckets string) (time.Duration, error) {
	s, err := q.number(ctx, fmt.Sprintf(`histogram_quantile(0.95, sum by (le) (increase(%s[%s])`+deploymentFilter+`))`, buckets, q.span, q.deployment))
	return time.Duration(s * float64(time.Second)), err
}

// number returns a query's single number, 0 if there is none.
func (q windowQuery) number(ctx context.Context, query string) (float64, error) {
	samples, err := q.samples(ctx, query)
	if err != nil || len(samples) == 0 {
		return 0, err
	}
	return samples[0].Value, nil
}

// samples runs a query within metricsLimit.
func (q windowQuery) samples(ctx context.Context, query string) ([]stack.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsLimit)
	defer cancel()
	return q.prometheus.QueryAt(ctx, query, q.at)
}
