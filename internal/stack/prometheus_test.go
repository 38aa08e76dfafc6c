package stack

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

func TestAWrongPrometheusAddressIsRefused(t *testing.T) {
	for _, bad := range []string{"", "localhost:9090", "ftp://x", "http://"} {
		if _, err := NewPrometheus(bad); err == nil || !strings.Contains(err.Error(), "--prometheus must be an address") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A resolved client looks for the server once, and one that is not each time.
func TestAResolvedPrometheusIsFoundOnce(t *testing.T) {
	looked := 0
	p := &Prometheus{Client: &http.Client{Transport: testkit.RecordedTransport(t)}, FindURL: func(context.Context) (string, error) {
		looked++
		return "http://prometheus:9090", nil
	}}
	resolved, err := p.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := resolved.Query(t.Context(), "up"); err != nil || looked != 1 {
			t.Fatalf("looked %d times; %v", looked, err)
		}
	}
	if _, err := p.Query(t.Context(), "up"); err != nil || looked != 2 {
		t.Errorf("looked %d times; %v", looked, err)
	}
}
