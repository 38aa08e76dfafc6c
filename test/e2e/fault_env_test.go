package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// A proxiedNode is a node, and the three lines that may be harmed: those of its
// clients to it, and its own to Redis and to PostgreSQL.
type proxiedNode struct {
	*testkit.Server
	clientProxy, redisProxy, postgresProxy *testkit.Proxy
	shouldRun                              bool // not killed, or to be started again
}

// A faultEnv is some nodes on one PostgreSQL and one Redis, with a crowd on them.
// Its methods belong to the test's goroutine.
type faultEnv struct {
	t        *testing.T
	rng      *rand.Rand
	nodes    []*proxiedNode
	pg       *testkit.PG
	broker   *testkit.RedisServer
	workload *workload

	lockHolder  *pgx.Conn // its transaction holds a room
	lockAwaited bool      // and somebody waited for that
}

// startFaultEnv starts so many nodes. Redis may be down.
func startFaultEnv(t *testing.T, rng *rand.Rand, nodeCount int, broker *testkit.RedisServer) *faultEnv {
	t.Helper()
	f := &faultEnv{t: t, rng: rng, pg: testkit.StartPostgres(t), broker: broker}
	host := fmt.Sprintf("127.0.0.1:%d", f.pg.Port())
	for range nodeCount {
		s := &proxiedNode{postgresProxy: testkit.NewProxy(t, host), redisProxy: testkit.NewProxy(t, broker.Addr()), shouldRun: true}
		s.Server = testkit.StartServer(t, map[string]string{
			"DATABASE_URL": strings.Replace(f.pg.URL(), host, s.postgresProxy.Addr(), 1),
			"REDIS_URL":    "redis://" + s.redisProxy.Addr(),
			"HEARTBEAT":    "2s",
			"API_KEYS":     "test:" + apiKey,
		})
		s.clientProxy = testkit.NewProxy(t, s.Addr)
		f.nodes = append(f.nodes, s)
	}
	t.Cleanup(f.logNodesOnFailure)
	return f
}

// logNodesOnFailure shows what the nodes have to say when a test has failed.
func (f *faultEnv) logNodesOnFailure() {
	if !f.t.Failed() {
		return
	}
	for i, s := range f.nodes {
		out := s.Output()
		f.t.Logf("node %d at %s, process %q, wanted %v, ready: %s\n…%s", i, s.Addr, s.State(), s.shouldRun, s.fetch("/readyz"), out[max(0, len(out)-4000):])
	}
}

// fetch returns what a GET answers with, or why there was no answer within a second.
func (s *proxiedNode) fetch(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// startWorkload brings a crowd, whose members reach the nodes through the proxies.
func (f *faultEnv) startWorkload(rooms, rate, size int) {
	f.t.Helper()
	cfg := workloadConfig{rooms: rooms, rate: rate, size: size}
	for _, s := range f.nodes {
		cfg.urls = append(cfg.urls, "ws://"+s.clientProxy.Addr()+"/ws")
	}
	f.workload = startWorkload(f.t, f.rng, cfg)
}

// busiest returns the station with the most clients.
func (f *faultEnv) busiest() *proxiedNode {
	best := f.nodes[0]
	for _, s := range f.nodes[1:] {
		if s.clientProxy.Connections() > best.clientProxy.Connections() {
			best = s
		}
	}
	return best
}

// anyWithClients returns a station with clients.
func (f *faultEnv) anyWithClients() *proxiedNode {
	for _, i := range f.rng.Perm(len(f.nodes)) {
		if f.nodes[i].clientProxy.Connections() > 0 {
			return f.nodes[i]
		}
	}
	return f.nodes[0]
}

// clientCounts tells how many clients each node has.
func (f *faultEnv) clientCounts() []int {
	var n []int
	for _, s := range f.nodes {
		n = append(n, s.clientProxy.Connections())
	}
	return n
}

// restartExited starts the nodes again that ended by themselves: who is started
// while PostgreSQL is away can't go on.
func (f *faultEnv) restartExited() {
	for _, s := range f.nodes {
		if s.shouldRun && s.Ended() {
			s.Launch()
		}
	}
}

// runFor lets time go by, and calls again, if there is one, all the while.
func (f *faultEnv) runFor(d time.Duration, onTick func()) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(d); time.Now().Before(until); <-tick.C {
		if onTick != nil {
			onTick()
		}
		f.restartExited()
	}
}

// waitFor is waitFor that supervises. A minute is far more than users should wait.
func (f *faultEnv) waitFor(what string, ok func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	waitFor(ctx, f.t, what, func() bool { f.restartExited(); return ok() })
}

// waitRecovered waits until every node is ready, every member hears what was stored
// from now on, and every publish of before is answered.
func (f *faultEnv) waitRecovered() {
	f.t.Helper()
	now := time.Now()
	for _, s := range f.nodes {
		f.waitFor("a node to be ready", func() bool {
			return !s.Ended() && strings.Contains(s.fetch("/readyz"), `"status":"ready"`)
		})
	}
	waiting := "" // named when it is in vain
	defer func() {
		if waiting != "" {
			f.t.Logf("%s has heard nothing", waiting)
		}
	}()
	f.waitFor("everybody to hear again", func() bool { waiting = f.workload.subscriberBehind(now); return waiting == "" })
	f.waitFor("all that was published before to be answered", func() bool { return !f.workload.waits.hasUnanswered(now) })
}

// metric returns the value of one series. A node that does not answer in time,
// on a machine that is busy with other things, is asked again.
func (f *faultEnv) metric(s *proxiedNode, series string) float64 {
	f.t.Helper()
	body := ""
	f.waitFor("a node to tell its metrics", func() bool {
		body = s.fetch("/metrics")
		return strings.Contains(body, "switchyard_build_info")
	})
	return parseMetric(body, series)
}

// feedRepairs is how often topics had to ask the log because only the commit
// feed knew of a message, on all nodes.
func (f *faultEnv) feedRepairs() (n float64) {
	for _, s := range f.nodes {
		n += f.metric(s, `websocket_repairs_total{cause="feed"}`)
	}
	return n
}

// waitBrokerDelivery waits until messages come by the broker again: it is up for every
// node, Redis knows every node as a subscriber of every room, and for longer
// than two readings of the commit feed no topic had to go to the log, though
// messages were acked. On a machine that is busy with other things a message is
// late now and then, so that takes some patience.
func (f *faultEnv) waitBrokerDelivery() {
	f.t.Helper()
	for _, s := range f.nodes {
		f.waitFor("the broker to be up", func() bool { return f.metric(s, "broker_up") == 1 })
	}
	for i := range f.workload.rooms {
		room, all := fmt.Sprintf("sy:room-%d", i), fmt.Sprintf(" %d", len(f.nodes))
		f.waitFor("every node to subscribe to "+room, func() bool {
			return strings.HasSuffix(f.broker.Do(f.t, "PUBSUB", "NUMSUB", room), all)
		})
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		acked, repairs := f.workload.acks.Load(), f.feedRepairs()
		f.runFor(600*time.Millisecond, nil)
		if f.feedRepairs() == repairs && f.workload.acks.Load() > acked {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("the commit feed still carries messages: %v repairs in the last moment", f.feedRepairs()-repairs)
		}
	}
}
