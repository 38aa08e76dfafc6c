package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

const (
	// twoNodeRooms have two members each, one on each node, who both publish.
	twoNodeRooms   = 10
	publisherCount = 2 * twoNodeRooms
	// publishRate is in messages a second of all publishers together.
	publishRate     = 200
	publishInterval = publisherCount * time.Second / publishRate
	// steadyTime is how long they publish before and after the fault, at least.
	steadyTime = time.Second
)

// A latencyWatch measures how long messages take from the call of Publish to each
// member, and how long members receive nothing. It is safe for concurrent use.
type latencyWatch struct {
	mu            sync.Mutex
	sent          map[string]time.Time
	lastDelivered map[string]time.Time // by member
	maxLatency    time.Duration
	maxPause      time.Duration
}

func (w *latencyWatch) recordPublish(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[id] = time.Now()
}

func (w *latencyWatch) recordDelivery(member, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.maxLatency = max(w.maxLatency, now.Sub(w.sent[id]))
	if before, ok := w.lastDelivered[member]; ok {
		w.maxPause = max(w.maxPause, now.Sub(before))
	}
	w.lastDelivered[member] = now
}

// resetWorst returns the slowest delivery and the longest pause since the last call.
func (w *latencyWatch) resetWorst() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf("slowest delivery %v, longest pause of a member %v", w.maxLatency.Round(time.Millisecond), w.maxPause.Round(time.Millisecond))
	w.maxLatency, w.maxPause = 0, 0
	return s
}

// A twoNodeWorkload is members of all rooms on two nodes. They publish until stop.
type twoNodeWorkload struct {
	history *load.History
	latency latencyWatch
	clients []*roomClient
	nodes   [2]*testkit.Server
	stop    func() // returns when every publish is acked
}

func startTwoNodeWorkload(t *testing.T, redisURL string) *twoNodeWorkload {
	t.Helper()
	w := &twoNodeWorkload{history: load.NewHistory(), latency: latencyWatch{sent: map[string]time.Time{}, lastDelivered: map[string]time.Time{}}}
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redisURL}
	for i := range w.nodes {
		w.nodes[i] = testkit.StartServer(t, env)
	}
	ctx := testkit.Within(t, testkit.Timeout)
	for i := range publisherCount {
		w.clients = append(w.clients, w.addClient(ctx, t, i))
	}
	stopping := make(chan struct{})
	var publishing sync.WaitGroup
	for i, c := range w.clients {
		publishing.Go(func() { w.publishLoop(ctx, t, c, time.Duration(i)*publishInterval/publisherCount, stopping) })
	}
	w.stop = sync.OnceFunc(func() { close(stopping); publishing.Wait() })
	t.Cleanup(w.stop)
	return w
}

func (w *twoNodeWorkload) addClient(ctx context.Context, t *testing.T, i int) *roomClient {
	t.Helper()
	c := &roomClient{name: fmt.Sprintf("client-%d", i), room: message.Room(fmt.Sprintf("room-%d", i%twoNodeRooms))}
	var err error
	if c.client, err = client.Dial(ctx, client.Options{URLs: []string{w.nodes[i/twoNodeRooms].SocketURL()}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	handler := w.history.Subscribe(c.name, c.room, client.Start()).Handler()
	onMessage := handler.Message
	handler.Message = func(m message.Message) {
		w.latency.recordDelivery(c.name, m.ID)
		onMessage(m)
	}
	if _, err = c.client.Join(ctx, c.room, client.Start(), handler); err != nil {
		t.Fatal(err)
	}
	return c
}

// publishLoop publishes at a steady pace, whether the acks keep up or not.
func (w *twoNodeWorkload) publishLoop(ctx context.Context, t *testing.T, c *roomClient, first time.Duration, stopping <-chan struct{}) {
	var acks sync.WaitGroup
	defer acks.Wait()
	next := time.NewTimer(first)
	defer next.Stop()
	for i := 0; ; i++ {
		select {
		case <-stopping:
			return
		case <-next.C:
			next.Reset(publishInterval)
		}
		id := fmt.Sprintf("%s-%d", c.name, i)
		w.latency.recordPublish(id)
		acks.Go(func() { c.publish(ctx, t, w.history, id) })
	}
}

// runSteadily waits until steadyTime has passed and each node's broker is up.
func (w *twoNodeWorkload) runSteadily(t *testing.T) {
	t.Helper()
	began := time.Now()
	testkit.Eventually(t, "a steady time", func() bool { return time.Since(began) > steadyTime })
	for _, node := range w.nodes {
		pollPage(t, "the broker to be up", func() bool { return metric(t, node, "broker_up") == 1 })
	}
}

// finish ends the workload and checks what each member received. A slow machine
// publishes less; at least half of the messages must be there.
func (w *twoNodeWorkload) finish(t *testing.T) {
	t.Helper()
	w.stop()
	testkit.Eventually(t, "the last deliveries", w.history.CaughtUp)
	for _, c := range w.clients {
		c.client.Close() // a delivery after this would be a duplicate
	}
	report := assertClean(t, w.history)
	if report.Rooms != twoNodeRooms || report.Acked < int(publishRate*2*steadyTime.Seconds()/2) {
		t.Errorf("%d messages in %d rooms are too few", report.Acked, report.Rooms)
	}
}

func TestARedisMasterDiesAndNobodyMissesAMessage(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedisSentinel(t)
	w := startTwoNodeWorkload(t, redis.URL())
	w.runSteadily(t)
	t.Logf("before: %s", w.latency.resetWorst())
	began := time.Now()
	killed := redis.KillMaster()
	redis.WaitMaster(killed)
	t.Logf("a new master after %v", time.Since(began).Round(time.Millisecond))
	w.runSteadily(t)
	t.Logf("failover: %s", w.latency.resetWorst())
	w.finish(t)
}

// All buckets of one of three cluster nodes move to another, one after the other.
func TestAClusterIsReshardedAndNobodyMissesAMessage(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedisCluster(t)
	w := startTwoNodeWorkload(t, redis.URL())
	w.runSteadily(t)
	t.Logf("before: %s", w.latency.resetWorst())
	began, moved := time.Now(), 0
	for i := range 64 {
		slot := redis.Slot(fmt.Sprintf("{b%02d}", i))
		if redis.Owner(slot) == redis.Nodes()[0] {
			redis.MoveSlot(slot)
			moved++
		}
	}
	t.Logf("%d slots moved in %v", moved, time.Since(began).Round(time.Millisecond))
	w.runSteadily(t)
	t.Logf("resharding: %s", w.latency.resetWorst())
	if moved == 0 {
		t.Error("no slot was moved")
	}
	w.finish(t)
}

// Without ca_file the server trusts the system's roots, which SSL_CERT_FILE names.
func TestRedisOverTLSWithSystemRoots(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedisTLS(t, "--tls-auth-clients", "no")
	s := testkit.StartServer(t, map[string]string{
		"REDIS_URL": "rediss://" + redis.TLSAddr(), "SSL_CERT_FILE": redis.CAFile,
	})
	pollPage(t, "the broker to be up", func() bool { return metric(t, s, "broker_up") == 1 })
	code, out := run(t, []string{"REDIS_URL=rediss://" + redis.TLSAddr() + "?ca_file=/no/such/file", "ADMIN_ADDR=127.0.0.1:0", "LISTEN_ADDR=127.0.0.1:0"})
	if code != 1 || !strings.Contains(out, "REDIS_URL: ca_file") {
		t.Errorf("a missing ca_file: exit %d:\n%s", code, out)
	}
}
