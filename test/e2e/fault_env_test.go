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
	"switchyard/internal/testkit/metrictest"
)

// A proxiedNode is a node with a proxy on each of its links: from its clients, to
// Redis and to PostgreSQL.
type proxiedNode struct {
	*testkit.Server
	clientProxy, redisProxy, postgresProxy *testkit.Proxy
	shouldRun                              bool // false while a fault has killed it
}

// A faultEnv is some nodes on one PostgreSQL and one Redis, with a workload on them.
// Its methods belong to the test's goroutine.
type faultEnv struct {
	t        *testing.T
	rng      *rand.Rand
	nodes    []*proxiedNode
	pg       *testkit.PG
	broker   *testkit.RedisServer
	workload *workload

	lockHolder  *pgx.Conn // its transaction locks a room's row
	lockAwaited bool      // a node has waited for that lock
}

// startFaultEnv starts nodeCount nodes. Redis may be down.
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

// logNodesOnFailure logs the state and the output of each node when the test failed.
func (f *faultEnv) logNodesOnFailure() {
	if !f.t.Failed() {
		return
	}
	for i, s := range f.nodes {
		out := s.Output()
		f.t.Logf("node %d at %s, process %q, should run %v, ready: %s\n…%s", i, s.Addr, s.State(), s.shouldRun, s.fetch("/readyz"), out[max(0, len(out)-4000):])
	}
}

// fetch returns the body of a page, or why there was no answer within a second.
func (n *proxiedNode) fetch(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL()+path, nil)
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

// startWorkload starts a workload whose clients reach the nodes through the proxies.
func (f *faultEnv) startWorkload(rooms, rate, size int) {
	f.t.Helper()
	cfg := workloadConfig{rooms: rooms, rate: rate, size: size}
	for _, s := range f.nodes {
		cfg.urls = append(cfg.urls, "ws://"+s.clientProxy.Addr()+"/ws")
	}
	f.workload = startWorkload(f.t, f.rng, cfg)
}

// busiest returns the node with the most clients.
func (f *faultEnv) busiest() *proxiedNode {
	best := f.nodes[0]
	for _, s := range f.nodes[1:] {
		if s.clientProxy.Connections() > best.clientProxy.Connections() {
			best = s
		}
	}
	return best
}

// anyWithClients returns a random node that has clients.
func (f *faultEnv) anyWithClients() *proxiedNode {
	for _, i := range f.rng.Perm(len(f.nodes)) {
		if f.nodes[i].clientProxy.Connections() > 0 {
			return f.nodes[i]
		}
	}
	return f.nodes[0]
}

// clientCounts returns how many clients each node has.
func (f *faultEnv) clientCounts() []int {
	var n []int
	for _, s := range f.nodes {
		n = append(n, s.clientProxy.Connections())
	}
	return n
}

// restartExited starts the nodes again that ended by themselves, as a node does that
// was started while PostgreSQL was down.
func (f *faultEnv) restartExited() {
	for _, s := range f.nodes {
		if s.shouldRun && s.Ended() {
			s.Launch()
		}
	}
}

// runFor lets d pass, and calls onTick, unless it is nil, every 50 ms.
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

// eventually is pollPage that restarts nodes meanwhile.
func (f *faultEnv) eventually(what string, ok func() bool) {
	f.t.Helper()
	pollPage(f.t, what, func() bool { f.restartExited(); return ok() })
}

// waitRecovered waits until every node is ready, every member has received a message
// stored after this call, and every publish before it is answered.
func (f *faultEnv) waitRecovered() {
	f.t.Helper()
	now := time.Now()
	for _, s := range f.nodes {
		f.eventually("a node to be ready", func() bool {
			return !s.Ended() && strings.Contains(s.fetch("/readyz"), `"status":"ready"`)
		})
	}
	behind := ""
	defer func() {
		if behind != "" {
			f.t.Logf("%s has received nothing", behind)
		}
	}()
	f.eventually("every member to receive messages again", func() bool { behind = f.workload.subscriberBehind(now); return behind == "" })
	f.eventually("all earlier publishes to be answered", func() bool { return !f.workload.waits.hasUnanswered(now) })
}

// metric returns the value of one series. It tries again when a node does not answer
// in time, since the machine may be busy with other things.
func (f *faultEnv) metric(s *proxiedNode, series string) float64 {
	f.t.Helper()
	body := ""
	f.eventually("a node to answer with its metrics", func() bool {
		body = s.fetch("/metrics")
		return strings.Contains(body, "switchyard_build_info")
	})
	value, _ := metrictest.Parse(f.t, body).Value(f.t, series)
	return value
}

// feedRepairs returns how often the topics of all nodes read the log for messages that
// only the commit feed announced.
func (f *faultEnv) feedRepairs() (n float64) {
	for _, s := range f.nodes {
		n += f.metric(s, `websocket_repairs_total{cause="feed"}`)
	}
	return n
}

// waitBrokerDelivery waits until messages come by the broker again: it is up for every
// node, Redis has every node as a subscriber of every room, and for more than two
// readings of the commit feed no topic read the log though messages were acked. On a
// busy machine a message is late now and then, so it tries again for two minutes.
func (f *faultEnv) waitBrokerDelivery() {
	f.t.Helper()
	for _, s := range f.nodes {
		f.eventually("the broker to be up", func() bool { return f.metric(s, "broker_up") == 1 })
	}
	for i := range f.workload.rooms {
		room, all := fmt.Sprintf("sy:room-%d", i), fmt.Sprintf(" %d", len(f.nodes))
		f.eventually("every node to subscribe to "+room, func() bool {
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
			f.t.Fatalf("messages still come from the log: %v repairs in the last reading", f.feedRepairs()-repairs)
		}
	}
}
