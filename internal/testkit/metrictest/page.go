package metrictest

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A Page is one reading of a page of metrics.
type Page struct {
	// Types has the type of each metric by its name: counter, gauge, histogram,
	// summary or untyped.
	Types map[string]string
	// Samples are those of all metrics. A histogram has one for each bucket, its
	// sum and its count.
	Samples model.Vector
}

// Parse reads a page as Prometheus does. It fails the test if Prometheus would
// refuse the page.
func Parse(tb testing.TB, page string) Page {
	tb.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		tb.Fatalf("a page of metrics: %v\n%s", err, page)
	}
	p := Page{Types: map[string]string{}}
	for name, f := range families {
		p.Types[name] = strings.ToLower(f.GetType().String())
	}
	p.Samples, err = expfmt.ExtractSamples(&expfmt.DecodeOptions{}, slices.Collect(maps.Values(families))...)
	if err != nil {
		tb.Fatalf("a page of metrics: %v\n%s", err, page)
	}
	return p
}

// Value returns the value of a series, which is written as on the page: the name
// with all labels, such as up{job="a"}. found is false if there is none.
func (p Page) Value(tb testing.TB, series string) (value float64, found bool) {
	tb.Helper()
	want := Parse(tb, series+" 0\n").Samples[0].Metric
	for _, s := range p.Samples {
		if s.Metric.Equal(want) {
			return float64(s.Value), true
		}
	}
	return 0, false
}

// Sum adds up the series of a name, whatever their labels. found is false if there
// are none.
func (p Page) Sum(name string) (total float64, found bool) {
	for _, s := range p.Samples {
		if s.Metric[model.MetricNameLabel] == model.LabelValue(name) {
			total, found = total+float64(s.Value), true
		}
	}
	return total, found
}
