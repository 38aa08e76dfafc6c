package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// readiness returns what /readyz says, and its status.
func readiness(t *testing.T, s *testkit.Server) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// Redis that takes connections, answers pings, and carries nothing: every
// health check of a connection is green while members on other nodes would hear
// nothing but for the log. The canary's echo tells, and tells when it is over.
func TestABrokerThatDropsEverythingIsReported(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedis(t)
	s := testkit.StartServer(t, map[string]string{"REDIS_URL": redis.URL()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	says := func(want string) func() bool {
		return func() bool {
			status, body := readiness(t, s)
			return status == http.StatusOK && strings.Contains(body, want)
		}
	}
	waitFor(ctx, t, "the broker to be up", says(`"broker":"up"`))
	redis.Do(t, "ACL", "SETUSER", "default", "-publish")
	waitFor(ctx, t, "the dead leg to be named, the node still ready", says(`"broker":"stale"`))
	if _, body := readiness(t, s); !strings.Contains(body, `"delivery":"up"`) {
		t.Errorf("local delivery goes on, and readyz says %s", body)
	}
	metrics := get(t, s.URL()+"/metrics")
	for _, line := range []string{"broker_up 1", `websocket_canary_age_seconds{leg="broker"}`, `websocket_canary_age_seconds{leg="local"}`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics without %s", line)
		}
	}
	redis.Do(t, "ACL", "SETUSER", "default", "+publish")
	waitFor(ctx, t, "the echo to be back", says(`"broker":"up"`))
}

// A database that hangs: connections stand, nothing is committed. The node is
// not ready within seconds, says which leg is stale, and is back by itself.
func TestADatabaseThatHangsMakesDeliveryStale(t *testing.T) {
	t.Parallel()
	db := testkit.Postgres(t)
	direct := fmt.Sprintf("127.0.0.1:%d", db.Port())
	proxy := testkit.NewProxy(t, direct)
	s := testkit.StartServer(t, map[string]string{"DATABASE_URL": strings.Replace(db.URL(), direct, proxy.Addr(), 1)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	proxy.Stall()
	waitFor(ctx, t, "delivery to be stale and the node unready", func() bool {
		status, body := readiness(t, s)
		return status == http.StatusServiceUnavailable && strings.Contains(body, `"delivery":"stale"`)
	})
	proxy.Resume()
	waitFor(ctx, t, "the node to be ready again", func() bool {
		status, _ := readiness(t, s)
		return status == http.StatusOK
	})
}
