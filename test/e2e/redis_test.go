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
	// publisherCount publish 500 messages a second together, two in each room, one on
	// each node.
	publisherCount  = 2 * roomCount
	publishInterval = publisherCount * time.Second / 500
	// steadyTime is how long they talk before and after the trouble.
	steadyTime = 2 * time.Second
)

// A latencyWatch measures how long messages take from the call of Publish to each
// member, and how long a member hears nothing.
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

// resetWorst returns the slowest delivery and the longest silence since it was
// called last.
func (w *latencyWatch) resetWorst() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf("slowest delivery %v, longest pause of a member %v", w.maxLatency.Round(time.Millisecond), w.maxPause.Round(time.Millisecond))
	w.maxLatency, w.maxPause = 0, 0
	return s
}

// A twoNodeWorkload is members of all rooms on two nodes who talk until stop.
type twoNodeWorkload struct {
	history *load.History
	latency latencyWatch
	clients []*roomClient
	nodes   [2]*testkit.Server
	stop    func() // waits for the acks of what was said
}

func startTwoNodeWorkload(t *testing.T, redisURL string) *twoNodeWorkload {
	t.Helper()
	p := &twoNodeWorkload{history: load.NewHistory(), latency: latencyWatch{sent: map[string]time.Time{}, lastDelivered: map[string]time.Time{}}}
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redisURL}
	for i := range p.nodes {
		p.nodes[i] = testkit.StartServer(t, env)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	for i := range publisherCount {
		p.clients = append(p.clients, p.addClient(ctx, t, i))
	}
	stopping := make(chan struct{})
	var publishing sync.WaitGroup
	for i, g := range p.clients {
		publishing.Go(func() { p.publishLoop(ctx, t, g, time.Duration(i)*publishInterval/publisherCount, stopping) })
	}
	p.stop = sync.OnceFunc(func() { close(stopping); publishing.Wait() })
	t.Cleanup(p.stop)
	return p
}

func (p *twoNodeWorkload) addClient(ctx context.Context, t *testing.T, i int) *roomClient {
	t.Helper()
	g := &roomClient{name: fmt.Sprintf("guest-%d", i), room: message.Room(fmt.Sprintf("room-%d", i%roomCount))}
	c, err := client.Dial(ctx, client.Options{URLs: []string{p.nodes[i/roomCount].SocketURL()}})
	if err != nil {
		t.Fatal(err)
	}
	g.client = c
	t.Cleanup(c.Close)
	handler := p.history.Subscribe(g.name, g.room, client.Start()).Handler()
	onMessage := handler.Message
	handler.Message = func(m message.Message) {
		p.latency.recordDelivery(g.name, m.ID)
		onMessage(m)
	}
	if _, err = c.Join(ctx, g.room, client.Start(), handler); err != nil {
		t.Fatal(err)
	}
	return g
}

// publishLoop publishes at its pace, whether the acks keep up or not.
func (p *twoNodeWorkload) publishLoop(ctx context.Context, t *testing.T, g *roomClient, first time.Duration, stopping <-chan struct{}) {
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
		id := fmt.Sprintf("%s-%d", g.name, i)
		p.latency.recordPublish(id)
		acks.Go(func() { g.publish(ctx, t, p.history, id) })
	}
}

// runFor waits until so much time has passed and each node's broker is up.
func (p *twoNodeWorkload) runFor(ctx context.Context, t *testing.T, d time.Duration) {
	t.Helper()
	began := time.Now()
	waitFor(ctx, t, "a calm time", func() bool { return time.Since(began) > d })
	for _, node := range p.nodes {
		waitFor(ctx, t, "the broker to be up", func() bool { return strings.Contains(get(t, node.URL()+"/metrics"), "\nbroker_up 1\n") })
	}
}

// finish ends the party and looks at what everybody got. A slow machine talks
// less; half of what was meant must be there.
func (p *twoNodeWorkload) finish(ctx context.Context, t *testing.T) {
	t.Helper()
	p.stop()
	waitFor(ctx, t, "the last deliveries", p.history.CaughtUp)
	for _, g := range p.clients {
		g.client.Close() // what else is on its way would be a double
	}
	report := assertClean(t, p.history)
	if report.Rooms != roomCount || report.Acked < 500*int(2*steadyTime/time.Second)/2 {
		t.Errorf("%d messages in %d rooms are no traffic", report.Acked, report.Rooms)
	}
}

func TestARedisMasterDiesAndNobodyMissesAMessage(t *testing.T) {
	redis := testkit.StartRedisSentinel(t)
	p := startTwoNodeWorkload(t, redis.URL())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p.runFor(ctx, t, steadyTime)
	t.Logf("before: %s", p.latency.resetWorst())
	began := time.Now()
	killed := redis.KillMaster()
	redis.WaitMaster(killed)
	t.Logf("a new master after %v", time.Since(began).Round(time.Millisecond))
	p.runFor(ctx, t, steadyTime)
	t.Logf("failover: %s", p.latency.resetWorst())
	p.finish(ctx, t)
}

// All buckets of one of three cluster nodes go to another, one after the other.
func TestAClusterIsReshardedAndNobodyMissesAMessage(t *testing.T) {
	redis := testkit.StartRedisCluster(t)
	p := startTwoNodeWorkload(t, redis.URL())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p.runFor(ctx, t, steadyTime)
	t.Logf("before: %s", p.latency.resetWorst())
	began, moved := time.Now(), 0
	for i := range 64 {
		slot := redis.Slot(fmt.Sprintf("{b%02d}", i))
		if redis.Owner(slot) == redis.Nodes()[0] {
			redis.MoveSlot(slot)
			moved++
		}
	}
	t.Logf("%d slots moved in %v", moved, time.Since(began).Round(time.Millisecond))
	p.runFor(ctx, t, steadyTime)
	t.Logf("resharding: %s", p.latency.resetWorst())
	if moved == 0 {
		t.Error("no slot was moved")
	}
	p.finish(ctx, t)
}

// Without ca_file the system's roots count, and SSL_CERT_FILE says which
// those are.
func TestRedisOverTLSWithSystemRoots(t *testing.T) {
	redis := testkit.StartRedisTLS(t, "--tls-auth-clients", "no")
	s := testkit.StartServer(t, map[string]string{
		"REDIS_URL": "rediss://" + redis.TLSAddr(), "SSL_CERT_FILE": redis.CAFile,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	waitFor(ctx, t, "the broker to be up", func() bool { return strings.Contains(get(t, s.URL()+"/metrics"), "\nbroker_up 1\n") })
	code, out := run(t, []string{"REDIS_URL=rediss://" + redis.TLSAddr() + "?ca_file=/no/such/file", "ADMIN_ADDR=127.0.0.1:0", "LISTEN_ADDR=127.0.0.1:0"})
	if code != 1 || !strings.Contains(out, "REDIS_URL: ca_file") {
		t.Errorf("a missing ca_file: exit %d:\n%s", code, out)
	}
}
