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

// metricsLimit bounds one question to Prometheus.
const metricsLimit = 5 * time.Second

// Prometheus answers what a deployment's replicas did.
type Prometheus struct {
	// Find finds its address.
	Find func(ctx context.Context) (string, error)
	// Limits returns the memory limits of a deployment's replicas by address
	// without port, in bytes; 0: none.
	Limits func(ctx context.Context, deployment string) (map[string]int64, error)
}

// only selects the series of a deployment: its id is on switchyard_build_info
// alone, and the target ties the two together.
const only = ` * on (instance) group_left () max by (instance) (switchyard_build_info{deployment="%s"})`

// Window asks for a span that ends now.
func (p *Prometheus) Window(ctx context.Context, deployment string, span time.Duration) (Window, error) {
	ask, err := p.question(ctx, deployment, span)
	if err != nil {
		return Window{}, err
	}
	var w Window
	for _, q := range []struct {
		into  *float64
		query string
	}{
		{&w.Operations, `(` + ask.sum(`websocket_messages_received_total`) + ` or vector(0)) + (` + ask.sum(`websocket_connections_total{result!~"origin|handshake|too_fast|unauthorized|removed"}`) +
			` or vector(0)) + (` + ask.sum(`http_requests_total{route!~"/(healthz|readyz|metrics|ws)"}`) + ` or vector(0))`},
		{&w.Errors, `(` + ask.sum(`websocket_errors_total{type=~"internal|unavailable"}`) + ` or vector(0)) + (` +
			ask.sum(`websocket_connections_total{result="refused"}`) + ` or vector(0)) + (` +
			ask.sum(`http_requests_total{route!~"/(healthz|readyz|metrics|ws)",code=~"5.."}`) + ` or vector(0))`},
		{&w.Publishes, ask.sum(`websocket_publish_duration_seconds_count`)},
		{&w.StoreFailed, ask.sum(`store_failed_total`)},
	} {
		if *q.into, err = ask.number(ctx, q.query); err != nil {
			return Window{}, err
		}
	}
	if w.P95, err = ask.p95(ctx, `websocket_publish_duration_seconds_bucket`); err != nil {
		return Window{}, err
	}
	if w.CanaryP95, err = ask.p95(ctx, `websocket_canary_duration_seconds_bucket{leg="local"}`); err != nil {
		return Window{}, err
	}
	return w, p.memory(ctx, ask, &w)
}

func (p *Prometheus) question(ctx context.Context, deployment string, span time.Duration) (question, error) {
	address, err := p.Find(ctx)
	if err != nil {
		return question{}, fmt.Errorf("find Prometheus: %w", err)
	}
	client, err := api.NewClient(api.Config{Address: address, RoundTripper: inside.Transport})
	if err != nil {
		return question{}, fmt.Errorf("ask Prometheus: %w", err)
	}
	return question{prom.NewAPI(client), deployment, fmt.Sprintf("%ds", int(span.Seconds())), time.Now()}, nil
}

// number asks for a single number, 0 when there is none.
func (p *Prometheus) number(ctx context.Context, query string) (float64, error) {
	q, err := p.question(ctx, "", 0)
	if err != nil {
		return 0, err
	}
	return q.number(ctx, query)
}

// memory finds the fullest replica.
func (p *Prometheus) memory(ctx context.Context, ask question, w *Window) error {
	held, err := ask.vector(ctx, `process_resident_memory_bytes`+fmt.Sprintf(only, ask.deployment))
	if err != nil {
		return err
	}
	w.Seen = len(held)
	limit := int64(0)
	limits, err := p.Limits(ctx, ask.deployment)
	if err != nil {
		return err
	}
	for _, l := range limits { // all replicas of a color have the same
		limit = max(limit, l)
	}
	for _, s := range held {
		if limit > 0 {
			w.Memory = max(w.Memory, float64(s.Value)/float64(limit))
		}
	}
	return nil
}

// A question is what is common to one window's queries.
type question struct {
	api        prom.API
	deployment string
	span       string
	at         time.Time
}

// sum adds up how much a counter grew on all replicas.
func (q question) sum(selector string) string {
	return fmt.Sprintf(`sum(increase(%s[%s])`+only+`)`, selector, q.span, q.deployment)
}

func (q question) p95(ctx context.Context, buckets string) (time.Duration, error) {
	s, err := q.number(ctx, fmt.Sprintf(`histogram_quantile(0.95, sum by (le) (increase(%s[%s])`+only+`))`, buckets, q.span, q.deployment))
	return time.Duration(s * float64(time.Second)), err
}

// number is a query's single answer, 0 when there is none.
func (q question) number(ctx context.Context, query string) (float64, error) {
	v, err := q.vector(ctx, query)
	if err != nil || len(v) == 0 || math.IsNaN(float64(v[0].Value)) {
		return 0, err
	}
	return float64(v[0].Value), nil
}

func (q question) vector(ctx context.Context, query string) (pm.Vector, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsLimit)
	defer cancel()
	value, _, _, err := q.api.Query(ctx, query, q.at)
	if err != nil {
		return nil, fmt.Errorf("ask Prometheus: %w", err)
	}
	v, ok := value.(pm.Vector)
	if !ok {
		return nil, fmt.Errorf("ask Prometheus: it answered with a %s", value.Type())
	}
	return v, nil
}
