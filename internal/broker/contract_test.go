package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// contract has the tests that every broker passes.
var contract = []struct {
	name string
	test func(t *testing.T, a, b *node)
}{
	{"A message reaches every subscribed node", aMessageReachesEverySubscribedNode},
	{"Payloads are unchanged", payloadsAreUnchanged},
	{"Order is kept per room", orderIsKeptPerRoom},
	{"Nothing arrives after unsubscribe", nothingArrivesAfterUnsubscribe},
	{"A confirmed subscription misses nothing", aConfirmedSubscriptionMissesNothing},
	{"Thousands of rooms", thousandsOfRooms},
	{"Subscribe ends with its context", subscribeRespectsItsContext},
	{"Close sends the queued broadcasts and ends everything", closeFlushesTheQueue},
}

// TestContract runs each test on two nodes of each broker.
func TestContract(t *testing.T) {
	for name, brokers := range map[string]func(t *testing.T) func(t *testing.T) *node{
		"memory": memoryNodes,
		"redis":  func(t *testing.T) func(*testing.T) *node { return redisNodes(testkit.Redis(t).URL()) },
		"sentinel": func(t *testing.T) func(*testing.T) *node {
			return redisNodes(testkit.StartRedisSentinel(t, "--requirepass", "hunter2").URL())
		},
		"cluster": func(t *testing.T) func(*testing.T) *node { return redisNodes(testkit.StartRedisCluster(t).URL()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			open := brokers(t)
			for _, c := range contract {
				t.Run(c.name, func(t *testing.T) { c.test(t, open(t), open(t)) })
			}
		})
	}
}

// memoryNodes returns a function that opens nodes on one bus. Each test closes
// its nodes, so that the next one is not affected.
func memoryNodes(*testing.T) func(t *testing.T) *node {
	var bus Bus
	return func(t *testing.T) *node {
		reg := prometheus.NewRegistry()
		return newNode(t, NewMemory(&bus, Config{Registerer: reg, Queue: 10_000}), reg)
	}
}

// redisNodes returns a function that opens nodes on the same servers.
func redisNodes(url string) func(t *testing.T) *node {
	return func(t *testing.T) *node {
		t.Helper()
		return openNode(t, Config{URL: url, Prefix: "contract:", Queue: 10_000})
	}
}

func aMessageReachesEverySubscribedNode(t *testing.T, a, b *node) {
	a.mustSubscribe(t, "lobby")
	b.mustSubscribe(t, "lobby", "den")
	a.Publish("lobby", []byte("hello"))
	a.Publish("den", []byte("psst"))
	b.waitFor(t, "lobby", "hello")
	b.waitFor(t, "den", "psst")
	a.waitFor(t, "lobby", "hello") // a node receives its own broadcasts, too
	if got := a.received("den"); len(got) > 0 {
		t.Errorf("a node got %q in a room that it has not subscribed to", got)
	}
	if got := a.metric(t, "broker_up", ""); got != 1 {
		t.Errorf("broker_up = %v", got)
	}
}

func payloadsAreUnchanged(t *testing.T, a, b *node) {
	b.mustSubscribe(t, "bytes")
	all := make([]byte, 64<<10)
	for i := range all {
		all[i] = byte(i)
	}
	a.Publish("bytes", all)
	a.Publish("bytes", nil)
	if got := b.waitFor(t, "bytes", ""); got[0] != string(all) {
		t.Error("64 KiB with every byte value arrived changed")
	}
}

func orderIsKeptPerRoom(t *testing.T, a, b *node) {
	const count = 2000
	rooms := []message.Room{"one", "two", "three", "four"}
	b.mustSubscribe(t, rooms...)
	var publishers sync.WaitGroup
	for _, room := range rooms {
		publishers.Go(func() {
			for i := range count {
				a.Publish(room, []byte(strconv.Itoa(i)))
			}
		})
	}
	publishers.Wait()
	lost := 0
	for _, room := range rooms {
		testkit.Eventually(t, "a last payload in "+string(room), func() bool {
			a.Publish(room, []byte(strconv.Itoa(count)))
			return slices.Contains(b.received(room), strconv.Itoa(count))
		})
		last := -1
		for _, payload := range b.received(room) {
			i, err := strconv.Atoi(payload)
			if err != nil || i <= last && i < count {
				t.Fatalf("%s: %q follows %d", room, payload, last)
			}
			lost += max(0, i-last-1)
			last = i
		}
	}
	// A round trip that takes longer than redisTimeout loses its broadcasts, which is counted.
	counted := a.metric(t, "broker_dropped_total", "") + b.metric(t, "broker_reconnects_total", "")
	if lost > 0 && counted == 0 {
		t.Errorf("%d payloads were lost without a count", lost)
	}
}

func nothingArrivesAfterUnsubscribe(t *testing.T, a, b *node) {
	b.mustSubscribe(t, "left", "marker")
	b.Unsubscribe("left")
	b.Unsubscribe("left")  // a second time is harmless
	b.Unsubscribe("never") // and so is a room without a subscription
	// The answer to a later subscription on the same connection proves that
	// Redis has done the unsubscribe.
	b.mustSubscribe(t, roomInSameBucket("left"))
	a.Publish("left", []byte("gone"))
	a.Publish("marker", []byte("end"))
	b.waitFor(t, "marker", "end")
	if got := b.received("left"); len(got) > 0 {
		t.Errorf("got %q after the unsubscribe", got)
	}
}

// A user who leaves and rejoins at once must not miss later messages.
func aConfirmedSubscriptionMissesNothing(t *testing.T, a, b *node) {
	for i := range 100 {
		payload := strconv.Itoa(i)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() { first <- b.Subscribe(ctx, "door") }()
		b.Unsubscribe("door")
		b.mustSubscribe(t, "door")
		a.Publish("door", []byte(payload))
		b.waitFor(t, "door", payload)
		cancel()
		if err := <-first; err != nil && !errors.Is(err, ErrUnsubscribed) && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		b.Unsubscribe("door")
	}
}

func thousandsOfRooms(t *testing.T, a, b *node) {
	rooms := manyRooms(5000)
	subscribeAll(t, b, rooms)
	for _, room := range rooms {
		a.Publish(room, []byte("x"))
	}
	for _, room := range rooms {
		published := time.Now()
		testkit.Eventually(t, string(room)+" receives", func() bool {
			if len(b.received(room)) > 0 {
				return true
			}
			// A machine too busy to answer a ping in time loses a connection,
			// and with it what was on the way.
			if time.Since(published) > time.Second {
				a.Publish(room, []byte("x"))
				published = time.Now()
			}
			return false
		})
	}
}

func subscribeRespectsItsContext(t *testing.T, a, _ *node) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Subscribe(ctx, "late"); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Subscribe = %v", err)
	}
}

func closeFlushesTheQueue(t *testing.T, a, b *node) {
	b.mustSubscribe(t, "last")
	testkit.Eventually(t, "up", a.Up)
	for i := range 1000 {
		a.Publish("last", []byte(strconv.Itoa(i)))
	}
	if err := a.Close(testkit.Within(t, testkit.Timeout)); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, "last", "999")
	if a.Up() {
		t.Error("a closed broker is up")
	}
	if err := a.Subscribe(t.Context(), "last"); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe = %v, want ErrClosed", err)
	}
	a.Publish("last", []byte("too late"))
	a.Unsubscribe("last")
	if got := a.metric(t, "broker_dropped_total", "closed"); got != 1 {
		t.Errorf("%v dropped as closed, want 1", got)
	}
	if err := a.Close(testkit.Within(t, testkit.Timeout)); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if slices.Contains(b.received("last"), "too late") {
		t.Error("a broadcast after Close was sent")
	}
}

func TestCloseWithoutStart(t *testing.T) {
	brokers := []brokerUnderTest{NewMemory(nil, Config{})}
	for _, url := range []string{"redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/m", "redis+cluster://127.0.0.1:1"} {
		b, err := OpenRedis(Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		brokers = append(brokers, b)
	}
	for _, b := range brokers {
		if err := b.Close(testkit.Within(t, testkit.Timeout)); err != nil {
			t.Errorf("%T: %v", b, err)
		}
		b.Start(func(message.Room, []byte) {}) // starts nothing, or the leak check would fail
	}
}

// roomInSameBucket returns another room of the same bucket.
func roomInSameBucket(room message.Room) message.Room {
	for i := 0; ; i++ {
		other := message.Room(fmt.Sprintf("%s-%d", room, i))
		if bucketOf(other, clusterBuckets) == bucketOf(room, clusterBuckets) {
			return other
		}
	}
}

func manyRooms(n int) []message.Room {
	rooms := make([]message.Room, n)
	for i := range rooms {
		rooms[i] = message.Room(fmt.Sprintf("room-%d", i))
	}
	return rooms
}

// subscribeAll subscribes to all rooms at the same time.
func subscribeAll(t *testing.T, n *node, rooms []message.Room) {
	t.Helper()
	ctx, errs := testkit.Within(t, testkit.Timeout), make(chan error, len(rooms))
	for _, room := range rooms {
		go func() { errs <- n.subscribe(ctx, room) }()
	}
	for range rooms {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}
