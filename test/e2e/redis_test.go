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
	// talkers publish 500 messages a second together, two in each room, one on
	// each node.
	talkers   = 2 * roomCount
	talkEvery = talkers * time.Second / 500
	// calm is how long they talk before and after the trouble.
	calm = 2 * time.Second
)

// A watch measures how long messages take from the call of Publish to each
// member, and how long a member hears nothing.
type watch struct {
	mu     sync.Mutex
	sent   map[string]time.Time
	heard  map[string]time.Time // by member
	slow   time.Duration
	silent time.Duration
}

func (w *watch) published(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[id] = time.Now()
}

func (w *watch) delivered(member, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.slow = max(w.slow, now.Sub(w.sent[id]))
	if before, ok := w.heard[member]; ok {
		w.silent = max(w.silent, now.Sub(before))
	}
	w.heard[member] = now
}

// worst returns the slowest delivery and the longest silence since it was
// called last.
func (w *watch) worst() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf("slowest delivery %v, longest pause of a member %v", w.slow.Round(time.Millisecond), w.silent.Round(time.Millisecond))
	w.slow, w.silent = 0, 0
	return s
}

// A party is members of all rooms on two nodes who talk until stop.
type party struct {
	history *load.History
	watch   watch
	guests  []*guest
	nodes   [2]*testkit.Server
	stop    func() // waits for the acks of what was said
}

func startParty(t *testing.T, redisURL string) *party {
	t.Helper()
	p := &party{history: load.NewHistory(), watch: watch{sent: map[string]time.Time{}, heard: map[string]time.Time{}}}
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redisURL}
	for i := range p.nodes {
		p.nodes[i] = testkit.StartServer(t, env)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	for i := range talkers {
		p.guests = append(p.guests, p.seat(ctx, t, i))
	}
	ending := make(chan struct{})
	var talking sync.WaitGroup
	for i, g := range p.guests {
		talking.Go(func() { p.talk(ctx, t, g, time.Duration(i)*talkEvery/talkers, ending) })
	}
	p.stop = sync.OnceFunc(func() { close(ending); talking.Wait() })
	t.Cleanup(p.stop)
	return p
}

func (p *party) seat(ctx context.Context, t *testing.T, i int) *guest {
	t.Helper()
	g := &guest{name: fmt.Sprintf("guest-%d", i), room: message.Room(fmt.Sprintf("room-%d", i%roomCount))}
	c, err := client.Dial(ctx, client.Options{URLs: []string{p.nodes[i/roomCount].SocketURL()}})
	if err != nil {
		t.Fatal(err)
	}
	g.client = c
	t.Cleanup(c.Close)
	handler := p.history.Subscribe(g.name, g.room, client.Start()).Handler()
	tell := handler.Message
	handler.Message = func(m message.Message) {
		p.watch.delivered(g.name, m.ID)
		tell(m)
	}
	if _, err = c.Join(ctx, g.room, client.Start(), handler); err != nil {
		t.Fatal(err)
	}
	return g
}

// talk publishes at its pace, whether the acks keep up or not.
func (p *party) talk(ctx context.Context, t *testing.T, g *guest, first time.Duration, ending <-chan struct{}) {
	var acks sync.WaitGroup
	defer acks.Wait()
	next := time.NewTimer(first)
	defer next.Stop()
	for i := 0; ; i++ {
		select {
		case <-ending:
			return
		case <-next.C:
			next.Reset(talkEvery)
		}
		id := fmt.Sprintf("%s-%d", g.name, i)
		p.watch.published(id)
		acks.Go(func() { g.say(ctx, t, p.history, id) })
	}
}

// goesOn waits until so much time has passed and each node's broker is up.
func (p *party) goesOn(ctx context.Context, t *testing.T, d time.Duration) {
	t.Helper()
	began := time.Now()
	waitFor(ctx, t, "a calm time", func() bool { return time.Since(began) > d })
	for _, node := range p.nodes {
		waitFor(ctx, t, "the broker to be up", func() bool { return strings.Contains(get(t, node.URL()+"/metrics"), "\nbroker_up 1\n") })
	}
}

// judge ends the party and looks at what everybody got. A slow machine talks
// less; half of what was meant must be there.
func (p *party) judge(ctx context.Context, t *testing.T) {
	t.Helper()
	p.stop()
	waitFor(ctx, t, "the last deliveries", p.history.Settled)
	for _, g := range p.guests {
		g.client.Close() // what else is on its way would be a double
	}
	report := judge(t, p.history)
	if report.Rooms != roomCount || report.Acked < 500*int(2*calm/time.Second)/2 {
		t.Errorf("%d messages in %d rooms are no traffic", report.Acked, report.Rooms)
	}
}

func TestARedisMasterDiesAndNobodyMissesAMessage(t *testing.T) {
	redis := testkit.StartSentinel(t)
	p := startParty(t, redis.URL())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p.goesOn(ctx, t, calm)
	t.Logf("before: %s", p.watch.worst())
	began := time.Now()
	killed := redis.KillMaster()
	redis.WaitMaster(killed)
	t.Logf("a new master after %v", time.Since(began).Round(time.Millisecond))
	p.goesOn(ctx, t, calm)
	t.Logf("failover: %s", p.watch.worst())
	p.judge(ctx, t)
}

// All buckets of one of three cluster nodes go to another, one after the other.
func TestAClusterIsReshardedAndNobodyMissesAMessage(t *testing.T) {
	redis := testkit.StartCluster(t)
	p := startParty(t, redis.URL())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p.goesOn(ctx, t, calm)
	t.Logf("before: %s", p.watch.worst())
	began, moved := time.Now(), 0
	for i := range 64 {
		slot := redis.Slot(fmt.Sprintf("{b%02d}", i))
		if redis.Owner(slot) == redis.Nodes()[0] {
			redis.MoveSlot(slot)
			moved++
		}
	}
	t.Logf("%d slots moved in %v", moved, time.Since(began).Round(time.Millisecond))
	p.goesOn(ctx, t, calm)
	t.Logf("resharding: %s", p.watch.worst())
	if moved == 0 {
		t.Error("no slot was moved")
	}
	p.judge(ctx, t)
}

// Without ca_file the system's roots count, and SSL_CERT_FILE says which
// those are.
func TestRedisOverTLSByTheSystemsRoots(t *testing.T) {
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
