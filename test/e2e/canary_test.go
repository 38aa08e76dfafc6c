package e2e

import (
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// Redis takes connections and answers pings, but delivers nothing: every health
// check of a connection passes, while members on other nodes receive messages from
// the log only. The canary's echo reveals it, and shows when it is over.
func TestABrokerThatDropsEverythingIsReported(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedis(t)
	s := testkit.StartServer(t, map[string]string{"REDIS_URL": redis.URL()})
	says := func(want string) func() bool {
		return func() bool {
			status, body := readiness(t, s)
			return status == http.StatusOK && strings.Contains(body, want)
		}
	}
	pollPage(t, "the broker to be up", says(`"broker":"up"`))
	redis.Do(t, "ACL", "SETUSER", "default", "-publish")
	pollPage(t, "the broker to be stale on a node that is ready", says(`"broker":"stale"`))
	if _, body := readiness(t, s); !strings.Contains(body, `"delivery":"up"`) {
		t.Errorf("local delivery works, and /readyz says %s", body)
	}
	metrics := testkit.Get(t, s.URL()+"/metrics")
	for _, line := range []string{"broker_up 1", `websocket_canary_age_seconds{leg="broker"}`, `websocket_canary_age_seconds{leg="local"}`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics without %s", line)
		}
	}
	redis.Do(t, "ACL", "SETUSER", "default", "+publish")
	pollPage(t, "the broker to be up again", says(`"broker":"up"`))
}

// The database hangs: connections stay open, and nothing is committed. The node is
// unready within seconds, says that delivery is stale, and recovers by itself.
func TestADatabaseThatHangsMakesDeliveryStale(t *testing.T) {
	t.Parallel()
	proxy, env := behindProxy(t, testkit.Postgres(t))
	s := testkit.StartServer(t, env)
	proxy.Stall()
	pollPage(t, "delivery to be stale and the node unready", func() bool {
		status, body := readiness(t, s)
		return status == http.StatusServiceUnavailable && strings.Contains(body, `"delivery":"stale"`)
	})
	proxy.Resume()
	pollPage(t, "the node to be ready again", func() bool {
		status, _ := readiness(t, s)
		return status == http.StatusOK
	})
}
