package stack

import (
	"strings"
	"testing"
)

func TestAWrongPrometheusAddressIsRefused(t *testing.T) {
	for _, bad := range []string{"", "localhost:9090", "ftp://x", "http://"} {
		if _, err := NewPrometheus(bad); err == nil || !strings.Contains(err.Error(), "--prometheus must be an address") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
