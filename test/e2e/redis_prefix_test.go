package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Production and staging have a database each and share one Redis, staging with a prefix
// of its own: whoever is banned in production, and whatever is sent there, staging sees
// nothing of it. Production has the default prefix, as every earlier release.
func TestDeploymentsWithPrefixesOfTheirOwnDoNotCross(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedis(t)
	start := func(env map[string]string) *testkit.Server {
		env["AUTH_JWT_SECRET"], env["API_KEYS"] = signingSecret, apiKey
		return testkit.StartServer(t, env)
	}
	production := start(map[string]string{"REDIS_URL": redis.URL() + "/0"})
	staging := start(map[string]string{"REDIS_URL": redis.URL() + "/1", "REDIS_PREFIX": "staging:"})
	ctx := testkit.Within(t, testkit.Timeout)
	var mu sync.Mutex
	received := map[string][]string{}
	join := func(deployment string, s *testkit.Server) *client.Client {
		c, err := client.Dial(ctx, client.Options{
			URLs:  []string{s.SocketURL()},
			Token: func(context.Context) (string, error) { return tokenOf("ada", nil), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		add := func(data json.RawMessage) {
			mu.Lock()
			defer mu.Unlock()
			received[deployment] = append(received[deployment], string(data))
		}
		if _, err := c.Join(ctx, "shared", client.Start(), client.Handler{
			Message: func(m message.Message) { add(m.Data) }, Signal: func(s client.Signal) { add(s.Data) },
		}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	got := func(deployment string) string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(received[deployment], " ")
	}
	inProduction, inStaging := join("production", production), join("staging", staging)
	for _, s := range []*testkit.Server{production, staging} {
		pollPage(t, "the broker to be up", func() bool { return metric(t, s, "broker_up") == 1 && metric(t, s, "session_up") == 1 })
	}
	for i := range 20 {
		if _, err := inProduction.Publish(ctx, "shared", json.RawMessage(fmt.Sprint(i)), ""); err != nil {
			t.Fatal(err)
		}
	}
	// A signal may be lost, where Redis takes too long.
	testkit.Eventually(t, "production receives its own", func() bool {
		if err := inProduction.Signal("shared", json.RawMessage(`"typing"`)); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(got("production"), `19 "typing"`)
	})
	if res, body := post(t, production, "/v1/users/ada/disconnect", `{"for":"10m"}`); res.StatusCode > 202 {
		t.Fatalf("disconnect: %d %s", res.StatusCode, body)
	}
	testkit.Receive(t, "the ban ends ada's connection in production", inProduction.Done())
	if _, err := inStaging.Publish(ctx, "shared", json.RawMessage(`"only mine"`), ""); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "staging receives its own", func() bool { return got("staging") != "" })
	join("staging again", staging) // which a ban would refuse
	if got("staging") != `"only mine"` {
		t.Errorf("staging received %s", got("staging"))
	}
	if n, _ := scrape(t, staging).Sum("websocket_repairs_total"); n != 0 {
		t.Errorf("messages of production made staging read its log %v times", n)
	}
	// Nothing of either is outside its prefix, and production's is that of earlier releases.
	pollPage(t, "both have written keys", func() bool { return strings.Count(redis.Do(t, "INFO", "keyspace"), "keys=") == 2 })
	for _, channel := range strings.Fields(redis.Do(t, "PUBSUB", "CHANNELS", "*")) {
		if !strings.HasPrefix(channel, "sy:") && !strings.HasPrefix(channel, "staging:") {
			t.Errorf("the channel %s has no prefix", channel)
		}
	}
	for prefix, name := range map[string]string{"sy:": "production", "staging:": "staging"} {
		if n := strings.Count(" "+redis.Do(t, "PUBSUB", "CHANNELS", prefix+"*"), " "+prefix); n < 4 { // shared, probe, /nodes, /node/NODE, canary
			t.Errorf("%s has %d channels with the prefix %s", name, n, prefix)
		}
	}
}
