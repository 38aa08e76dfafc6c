// Package metrictest reads metrics in tests.
package metrictest

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Sum returns the sum of a counter or gauge over all labels, or the count of a
// histogram. With a label it adds up only the series whose first label has that value.
// It fails the test when there is no such series.
func Sum(tb testing.TB, reg prometheus.Gatherer, name, label string) float64 {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				found = true
			}
		}
	}
	if !found {
		tb.Fatalf("no metric %s{%s}", name, label)
	}
	return sum
}
