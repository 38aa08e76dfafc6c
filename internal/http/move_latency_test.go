package http

import (
	"testing"
	"time"
)

func TestMoveLatencies(t *testing.T) {
	var a moveLatencies
	now := time.Now()
	if a.p95(now) != 0 {
		t.Error("there is a latency without a client")
	}
	for range minMoveLatencies - 1 {
		if a.record(now, time.Minute); a.p95(now) != 0 {
			t.Error("fewer than ten clients are the latency of the node") // docs/decisions/0019
		}
	}
	now = now.Add(moveLatencyMaxAge + time.Second)
	for i := range 100 {
		a.record(now, time.Duration(i+1)*time.Millisecond)
	}
	if got := a.p95(now); got != 95*time.Millisecond {
		t.Errorf("p95 of 1 to 100 ms is %v", got)
	}
	if got := a.p95(now.Add(moveLatencyMaxAge + time.Second)); got != 0 {
		t.Errorf("after moveLatencyMaxAge: %v", got)
	}
	for range 2 * moveLatencySamples {
		a.record(now, time.Second)
	}
	if got := a.p95(now); got != time.Second {
		t.Errorf("p95 of the newest latencies is %v", got)
	}
}
