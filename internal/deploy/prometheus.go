package deploy

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/api"
	prom "github.com/prometheus/client_golang/api/prometheus/v1"
	pm "github.com/prometheus/common/model"
)

// metricsLimit bounds one query to Prometheus.
const metricsLimit = 5 * time.Second

// Prometheus implements Metrics: it queries a Prometheus server.
type Prometheus struct {
	// FindURL returns the server's URL.
	FindURL func(ctx context.Context) (string, error)
	// MemoryLimits returns the memory limits of a deployment's replicas in bytes, by
	// address without port; 0 means no limit.
	MemoryLimits func(ctx context.Context, deployment string) (map[string]int64, error)
}

// deploymentFilter selects the series of a deployment. Only switchyard_build_info
// has the deployment's id as a label, so the filter joins on the instance.
const deploymentFilter = ` * on (instance) group_left () max by (instance) (switchyard_build_info{deployment="%s"})`

// Window returns the metrics of a span that ends now.
func (p *Prometheus) Window(ctx context.Context, deployment string, span time.Duration) (MetricsWindow, error) {
	query, err := p.newQuery(ctx, deployment, span)
	if err != nil {
		return MetricsWindow{}, err
	}
	var w MetricsWindow
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
	return w, p.fillMemory(ctx, query, &w)
}

// newQuery prepares the queries of one window. All of them use the same time.
func (p *Prometheus) newQuery(ctx context.Context, deployment string, span time.Duration) (promQuery, error) {
	address, err := p.FindURL(ctx)
	if err != nil {
		return promQuery{}, fmt.Errorf("find Prometheus: %w", err)
	}
	client, err := api.NewClient(api.Config{Address: address, RoundTripper: containerClient.Transport})
	if err != nil {
		return promQuery{}, fmt.Errorf("query Prometheus: %w", err)
	}
	return promQuery{prom.NewAPI(client), deployment, fmt.Sprintf("%ds", int(span.Seconds())), time.Now()}, nil
}

// number returns the result of a query for a single number, 0 if there is none.
func (p *Prometheus) number(ctx context.Context, query string) (float64, error) {
	q, err := p.newQuery(ctx, "", 0)
	if err != nil {
		return 0, err
	}
	return q.number(ctx, query)
}

// fillMemory sets the window's Memory and Replicas.
func (p *Prometheus) fillMemory(ctx context.Context, query promQuery, w *MetricsWindow) error {
	samples, err := query.vector(ctx, `process_resident_memory_bytes`+fmt.Sprintf(deploymentFilter, query.deployment))
	if err != nil {
		return err
	}
	w.Replicas = len(samples)
	limit := int64(0)
	limits, err := p.MemoryLimits(ctx, query.deployment)
	if err != nil {
		return err
	}
	for _, l := range limits { // all replicas of a color have the same limit
		limit = max(limit, l)
	}
	for _, s := range samples {
		if limit > 0 {
			w.Memory = max(w.Memory, float64(s.Value)/float64(limit))
		}
	}
	return nil
}

// A promQuery holds the parameters that the queries of one window share.
type promQuery struct {
	api        prom.API
	deployment string
	span       string
	at         time.Time
}

// sum returns the expression for a counter's increase on all replicas.
func (q promQuery) sum(selector string) string {
	return fmt.Sprintf(`sum(increase(%s[%s])`+deploymentFilter+`)`, selector, q.span, q.deployment)
}

// p95 returns the 95th percentile of a histogram's durations, 0 if there are none.
func (q promQuery) p95(ctx context.Context, buckets string) (time.Duration, error) {
	s, err := q.number(ctx, fmt.Sprintf(`histogram_quantile(0.95, sum by (le) (increase(%s[%s])`+deploymentFilter+`))`, buckets, q.span, q.deployment))
	return time.Duration(s * float64(time.Second)), err
}

// number returns a query's single number, 0 if there is none.
func (q promQuery) number(ctx context.Context, query string) (float64, error) {
	v, err := q.vector(ctx, query)
	if err != nil || len(v) == 0 || math.IsNaN(float64(v[0].Value)) {
		return 0, err
	}
	return float64(v[0].Value), nil
}

// vector runs a query within metricsLimit.
func (q promQuery) vector(ctx context.Context, query string) (pm.Vector, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsLimit)
	defer cancel()
	value, _, _, err := q.api.Query(ctx, query, q.at)
	if err != nil {
		return nil, fmt.Errorf("query Prometheus: %w", err)
	}
	v, ok := value.(pm.Vector)
	if !ok {
		return nil, fmt.Errorf("query Prometheus: the result is a %s, not a vector", value.Type())
	}
	return v, nil
}
