package metrictest

import "testing"

func TestAPageOfMetricsIsRead(t *testing.T) {
	p := Parse(t, `# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{code="200",route="/v1/{room}, \"x\""} 3
calls_total{code="404",route=""} 1e3
# TYPE took_seconds histogram
took_seconds_bucket{le="0.5"} 1
took_seconds_bucket{le="+Inf"} 2
took_seconds_sum 7.5
took_seconds_count 2
up 1
`)
	for series, want := range map[string]float64{
		`calls_total{code="200",route="/v1/{room}, \"x\""}`: 3, `calls_total{route="",code="404"}`: 1000,
		"took_seconds_count": 2, "took_seconds_sum": 7.5, `took_seconds_bucket{le="0.5"}`: 1, "up": 1,
	} {
		if got, found := p.Value(t, series); !found || got != want {
			t.Errorf("%s is %v, found %v; want %v", series, got, found, want)
		}
	}
	for _, series := range []string{"down", "calls_total", `calls_total{code="200"}`, `up{code="200"}`} {
		if got, found := p.Value(t, series); found {
			t.Errorf("%s is %v, and there is none", series, got)
		}
	}
	if got, found := p.Sum("calls_total"); !found || got != 1003 {
		t.Errorf("the sum is %v, found %v", got, found)
	}
	if _, found := p.Sum("calls"); found {
		t.Error("a name that is not on the page was found")
	}
	if p.Types["calls_total"] != "counter" || p.Types["took_seconds"] != "histogram" || p.Types["up"] != "untyped" {
		t.Errorf("%v", p.Types)
	}
}
