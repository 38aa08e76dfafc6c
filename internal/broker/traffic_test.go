package broker

import (
	"regexp"
	"strconv"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// commandCalls returns how often Redis got a command since it was started.
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

func TestRoomsAreSubscribedInChunks(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	subscribeAll(t, n, manyRooms(5000))
	server.Restart()
	eventually(t, "all rooms to be back", func() bool {
		return server.Do(t, "PUBSUB", "NUMSUB", "sy:room-4999") == "sy:room-4999 1" && n.Up()
	})
	n.mustSubscribe(t, "last")
	if got, most := commandCalls(t, server, "subscribe"), 5000/maxRoomsPerCommand+3; got > most {
		t.Errorf("5,000 rooms took %d commands, want %d at most", got, most)
	}
}

func TestQueuedPublicationsShareRoundTrips(t *testing.T) {
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	n := openNode(t, Config{URL: "redis://" + proxy.Addr()})
	eventually(t, "up", n.Up)
	proxy.Delay(20 * time.Millisecond) // so that something waits
	for range 1000 {
		n.Publish("r", []byte("x"))
	}
	eventually(t, "all to arrive", func() bool { return commandCalls(t, server, "publish") == 1000 })
	eventually(t, "the answers", func() bool { return n.metric(t, "broker_publish_duration_seconds", "") > 0 })
	if trips := n.metric(t, "broker_publish_duration_seconds", ""); trips > 20 {
		t.Errorf("1,000 publications took %v round trips", trips)
	}
}

func TestAShortOutageLosesNoQueuedPublication(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	eventually(t, "up", n.Up)
	server.Kill()
	eventually(t, "down", func() bool { return !n.Up() })
	for range 50 {
		n.Publish("r", []byte("x"))
	}
	server.Restart()
	eventually(t, "what waited to arrive", func() bool { return commandCalls(t, server, "publish") == 50 })
	if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped", got)
	}
}

func TestPublicationsLeftAtCloseAreCounted(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	eventually(t, "up", n.Up)
	server.Kill()
	eventually(t, "down", func() bool { return !n.Up() })
	for range 7 {
		n.Publish("r", []byte("x"))
	}
	if err := n.Close(within(t, testTimeout)); err != nil {
		t.Error(err)
	}
	if got := n.metric(t, "broker_dropped_total", "closed"); got != 7 {
		t.Errorf("%v dropped as closed, want 7", got)
	}
}
