package broker

import (
	"regexp"
	"strconv"
	"testing"

	"switchyard/internal/testkit"
)

// commandCalls returns how often Redis has executed a command since its start.
func commandCalls(t *testing.T, server *testkit.RedisServer, command string) int {
	t.Helper()
	stats := server.Do(t, "INFO", "commandstats")
	found := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(stats)
	if found == nil {
		return 0
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAShortOutageLosesNoQueuedBroadcast(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	testkit.Eventually(t, "up", n.Up)
	server.Kill()
	testkit.Eventually(t, "down", func() bool { return !n.Up() })
	for range 50 {
		n.Publish("r", []byte("x"))
	}
	server.Restart()
	testkit.Eventually(t, "the queued broadcasts to arrive", func() bool { return commandCalls(t, server, "publish") == 50 })
	if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped", got)
	}
}

func TestBroadcastsLeftAtCloseAreCounted(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	testkit.Eventually(t, "up", n.Up)
	server.Kill()
	testkit.Eventually(t, "down", func() bool { return !n.Up() })
	for range 7 {
		n.Publish("r", []byte("x"))
	}
	if err := n.Close(testkit.Within(t, testkit.Timeout)); err != nil {
		t.Error(err)
	}
	if got := n.metric(t, "broker_dropped_total", "closed"); got != 7 {
		t.Errorf("%v dropped as closed, want 7", got)
	}
}
