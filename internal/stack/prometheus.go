package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// A Prometheus is a client of one Prometheus server. It is safe for concurrent
// use.
type Prometheus struct {
	// FindURL returns the server's URL.
	FindURL func(ctx context.Context) (string, error)
	// Client sends the queries; nil means the client for containers.
	Client *http.Client
}

// queryTimeout bounds one query.
const queryTimeout = 15 * time.Second

// ErrNoPrometheus means that Prometheus did not answer. Only metrics are missing
// then; the log and the nodes can still be read.
var ErrNoPrometheus = errors.New("is Prometheus running? --prometheus names another address")

// NewPrometheus returns a client of the Prometheus at an address such as
// http://127.0.0.1:9090. It does not connect.
func NewPrometheus(address string) (*Prometheus, error) {
	if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("--prometheus must be an address such as http://127.0.0.1:9090, not %q", address)
	}
	return (&Prometheus{}).at(address), nil
}

// at returns a client of the Prometheus at an address.
func (p *Prometheus) at(address string) *Prometheus {
	return &Prometheus{Client: p.Client, FindURL: func(context.Context) (string, error) { return address, nil }}
}

// Resolve returns a client of the same Prometheus that keeps the address that the
// server has now: for many queries in a row it is found only once.
func (p *Prometheus) Resolve(ctx context.Context) (*Prometheus, error) {
	address, err := p.FindURL(ctx)
	if err != nil {
		return nil, err
	}
	return p.at(address), nil
}

// connect returns the server's API and its address.
func (p *Prometheus) connect(ctx context.Context) (v1.API, string, error) {
	address, err := p.FindURL(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("find Prometheus: %w", err)
	}
	c, err := api.NewClient(api.Config{Address: address, Client: cmp.Or(p.Client, containerClient)})
	if err != nil {
		return nil, "", fmt.Errorf("query Prometheus: %w", err)
	}
	return v1.NewAPI(c), address, nil
}

// wrapError wraps ErrNoPrometheus unless Prometheus answered that the query is
// wrong or can't be computed.
func wrapError(address string, err error) error {
	var apiErr *v1.Error
	if errors.As(err, &apiErr) && slices.Contains([]v1.ErrorType{v1.ErrBadData, v1.ErrExec, v1.ErrTimeout}, apiErr.Type) {
		return fmt.Errorf("Prometheus at %s: %s", address, apiErr.Msg)
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": dial"); i >= 0 {
		text = text[i+2:]
	}
	return fmt.Errorf("Prometheus at %s does not answer (%s): %w", address, strings.ReplaceAll(text, "\n", " "), ErrNoPrometheus)
}

// A Sample is the value of one series at a moment.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query returns the present value of an expression.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Sample, error) {
	return p.QueryAt(ctx, expr, time.Now())
}

// QueryAt returns the value of an expression at a moment, without series that are
// NaN.
func (p *Prometheus) QueryAt(ctx context.Context, expr string, at time.Time) ([]Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	server, address, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	value, _, _, err := server.Query(ctx, expr, at)
	if err != nil {
		return nil, wrapError(address, err)
	}
	var out []Sample
	switch v := value.(type) {
	case model.Vector:
		for _, s := range v {
			if f := float64(s.Value); !math.IsNaN(f) {
				out = append(out, Sample{labels(s.Metric), f})
			}
		}
	case *model.Scalar:
		out = append(out, Sample{nil, float64(v.Value)})
	}
	return out, nil
}

// QueryValue returns the first value of an expression at a moment; ok is false
// when there is none.
func (p *Prometheus) QueryValue(ctx context.Context, expr string, at time.Time) (value float64, ok bool, err error) {
	samples, err := p.QueryAt(ctx, expr, at)
	if err != nil || len(samples) == 0 {
		return 0, false, err
	}
	return samples[0].Value, true, nil
}

// A Series is the values of one series over time. Times and Values have the same
// length.
type Series struct {
	Labels map[string]string
	Times  []time.Time
	Values []float64
}

// QueryRange returns an expression over a span, in about that many points, without
// values that are not finite.
func (p *Prometheus) QueryRange(ctx context.Context, expr string, from, to time.Time, points int) ([]Series, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	server, address, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	step := max(to.Sub(from)/time.Duration(points), time.Second)
	value, _, _, err := server.QueryRange(ctx, expr, v1.Range{Start: from, End: to, Step: step})
	if err != nil {
		return nil, wrapError(address, err)
	}
	matrix, ok := value.(model.Matrix)
	if !ok {
		return nil, fmt.Errorf("the answer to %s is not a series", expr)
	}
	var out []Series
	for _, m := range matrix {
		s := Series{Labels: labels(m.Metric)}
		for _, v := range m.Values {
			if f := float64(v.Value); !math.IsNaN(f) && !math.IsInf(f, 0) {
				s.Times, s.Values = append(s.Times, v.Timestamp.Time()), append(s.Values, f)
			}
		}
		if len(s.Values) > 0 {
			out = append(out, s)
		}
	}
	return out, nil
}

func labels(m model.Metric) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[string(k)] = string(v)
	}
	return out
}

// An Alert is a firing alert of Prometheus.
type Alert struct {
	Name     string `json:"name"`
	Severity string `json:"severity,omitempty"`
	Labels   string `json:"labels,omitempty"`
	Instance string `json:"-"`
}

// Alerts returns the alerts that fire, sorted by name.
func (p *Prometheus) Alerts(ctx context.Context) ([]Alert, error) {
	alerts := []Alert{}
	firing, err := p.Query(ctx, `ALERTS{alertstate="firing"}`)
	for _, f := range firing {
		rest := model.Metric{}
		for name, value := range f.Labels {
			if !slices.Contains([]string{"__name__", "alertname", "alertstate", "severity"}, name) {
				rest[model.LabelName(name)] = model.LabelValue(value)
			}
		}
		alerts = append(alerts, Alert{Name: f.Labels["alertname"], Severity: f.Labels["severity"], Labels: rest.String(), Instance: f.Labels["instance"]})
	}
	slices.SortFunc(alerts, func(a, b Alert) int { return strings.Compare(a.Name+a.Labels, b.Name+b.Labels) })
	return alerts, err
}
