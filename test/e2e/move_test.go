package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

var longMoves = flag.Int("moves.clients", 0, "how many clients move, as in `make moves`; 0 is the short form")

// parallelUnlessLongMoves lets the short form run beside other tests. The long form
// measures waits, which they would lengthen.
func parallelUnlessLongMoves(t *testing.T) {
	t.Helper()
	if *longMoves == 0 {
		t.Parallel()
	}
}

const (
	// handshakeLimit is the first node's MAX_HANDSHAKE_RATE, the default.
	handshakeLimit = 500
	// moveLimit is how long a node may take to exit: DRAIN_TIMEOUT and 25 s.
	moveLimit = 70 * time.Second
)

// A moveScenario is two nodes behind one name, and clients that begin on the first
// node. Clients resolve the name at each connect, instead of a proxy between them
// and the nodes, which would cost as much as both nodes do.
type moveScenario struct {
	t          *testing.T
	a, b       *testkit.Server
	targetAddr atomic.Pointer[string] // of the node that the name leads to
	run        *load.Run
	clients    int

	mu    sync.Mutex  // Protects following.
	dials []time.Time // begins of handshakes with the second node
}

// startMoveScenario starts the nodes and the clients: shortClients, or thousands in the
// long form, half of which publish. limit is the second node's MAX_HANDSHAKE_RATE.
func startMoveScenario(t *testing.T, env map[string]string, shortClients, limit int) *moveScenario {
	t.Helper()
	plan := load.Plan{Clients: shortClients, Rooms: 10, Rate: 60, Duration: 3 * time.Minute, Settle: time.Minute}
	start := testkit.StartServer
	if *longMoves > 0 {
		n := *longMoves
		plan = load.Plan{
			Clients: n, Publishers: n / 2, Rooms: max(1, n/50), Rate: float64(n) / 10,
			Duration: 5 * time.Minute, RampUp: time.Duration(n) * 3 * time.Millisecond, Settle: time.Minute,
		}
		start = testkit.StartPlainServer // with the race detector, 5,000 clients are too many for two cores
	}
	all := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"DRAIN_WINDOW": "10s", "DRAIN_TIMEOUT": "45s", "MAX_HANDSHAKE_RATE": fmt.Sprint(handshakeLimit),
	}
	for name, value := range env {
		all[name] = value
	}
	r := &moveScenario{t: t, a: start(t, all), clients: plan.Clients}
	all["MAX_HANDSHAKE_RATE"] = fmt.Sprint(limit)
	r.b = start(t, all)
	r.targetAddr.Store(&r.a.Addr)
	plan.URLs = []string{"ws://switchyard.test/ws"}
	plan.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		to := *r.targetAddr.Load()
		if to == r.b.Addr {
			r.mu.Lock()
			r.dials = append(r.dials, time.Now())
			r.mu.Unlock()
		}
		return new(net.Dialer).DialContext(ctx, network, to)
	}
	run, err := load.Start(testkit.Within(t, 8*time.Minute), plan)
	if err != nil {
		t.Fatal(err)
	}
	r.run = run
	r.waitFor("messages on the first node", func() bool { return run.Progress().Delivered > int64(plan.Clients) })
	// The baseline: the longest pauses while nothing happens.
	run.BeginPhase()
	baseline := run.Progress().Acked + int64(plan.Rate)
	if *longMoves > 0 {
		baseline += int64(12 * plan.Rate)
	}
	r.waitFor("the baseline", func() bool { return run.Progress().Acked >= baseline })
	run.BeginPhase()
	return r
}

// maxHandshakesWithin returns the most handshakes with the second node that began
// within any span of this length. They are counted at the clients: a node's own
// count is read now and then, by a request that a busy machine answers late.
func (m *moveScenario) maxHandshakesWithin(within time.Duration) (most int) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.dials) < m.clients {
		m.t.Errorf("%d handshakes were counted, for %d clients", len(m.dials), m.clients)
	}
	for first, next := 0, 0; first < len(m.dials); first++ {
		for next < len(m.dials) && m.dials[next].Sub(m.dials[first]) < within {
			next++
		}
		most = max(most, next-first)
	}
	return most
}

// waitMoved waits until every client is on the second node and receives messages
// there, and ends the phase of the move.
func (m *moveScenario) waitMoved() {
	m.t.Helper()
	m.waitFor("every client on the second node", func() bool { return m.clientsOn(m.b) == m.clients })
	wantDelivered := m.run.Progress().Delivered + int64(2*m.clients)
	m.waitFor("messages on the second node", func() bool { return m.run.Progress().Delivered > wantDelivered })
	m.run.BeginPhase()
}

func (m *moveScenario) waitFor(what string, ok func() bool) {
	m.t.Helper()
	waitFor(testkit.Within(m.t, 3*time.Minute), m.t, what, ok)
}

// clientsOn returns how many clients a node has.
func (m *moveScenario) clientsOn(s *testkit.Server) int {
	return int(metric(m.t, s, "websocket_active_connections"))
}

// finish ends the run, and checks that no message was lost, duplicated or reordered
// and no client rejected.
func (m *moveScenario) finish() *load.Report {
	m.t.Helper()
	m.run.Stop()
	report := m.run.Report()
	if report.Verdict != load.Clean || report.Gaps > 0 || report.Unknown > 0 || len(report.Run.Rejected) > 0 {
		m.t.Errorf("%s", report)
	}
	m.t.Logf("%d acked, %d delivered, %d reconnects", report.Acked, report.Delivered, report.Run.Reconnects)
	for phase, what := range map[int]string{1: "before the move", 2: "during the move"} {
		pauses := phasePauses(report, phase)
		m.t.Logf("longest pause of a client %s: p50 %v, p99 %v, worst %v", what,
			pauses.Quantile(.5).Round(time.Millisecond), pauses.Quantile(.99).Round(time.Millisecond), pauses.Max().Round(time.Millisecond))
	}
	return report
}

// phasePauses returns the clients' longest pauses in one phase of the run: 1 is the
// baseline, 2 the move.
func phasePauses(r *load.Report, phase int) *load.Latencies {
	l := new(load.Latencies)
	for _, s := range r.Subscribers {
		l.Add(time.Duration(s.Pauses[phase]))
	}
	return l
}

// A deploy sends SIGTERM to a node. Its clients move: each opens a connection to the
// other node before it closes the old one.
func TestADeployMovesEveryClient(t *testing.T) {
	parallelUnlessLongMoves(t)
	// The short form has few clients, so its window is short and its limit low
	// enough to be reached.
	env, limit := map[string]string{"DRAIN_WINDOW": "1s"}, 40
	if *longMoves > 0 {
		env, limit = nil, handshakeLimit
	}
	r := startMoveScenario(t, env, 50, limit)
	r.targetAddr.Store(&r.b.Addr)
	began := time.Now()
	exit := r.a.StopWithin(moveLimit)
	took := time.Since(began)
	if exit != nil {
		t.Errorf("exit after %v: %v\n%s", took, exit, r.a.Output())
	}
	moves := r.run.Progress().Moves
	if int(moves) < r.clients {
		t.Errorf("%d of %d clients moved; the others were closed\n%s", moves, r.clients, grepLines(r.a.Output(), "drain"))
	}
	r.waitMoved()
	// The limit counts by the second, so no second may have more; nor did the node refuse any.
	most := r.maxHandshakesWithin(time.Second)
	if refused := metric(t, r.b, `websocket_connections_total{result="too_fast"}`); refused > 0 || most > limit {
		t.Errorf("%v handshakes were over the second node's limit, %d came within a second", refused, most)
	}
	report := r.finish()
	t.Logf("moved %d clients, exit after %v, at most %d handshakes in a second of %d\n%s", moves, took.Round(10*time.Millisecond),
		most, limit, grepLines(r.a.Output(), `"drain`))
	if report.Run.Reconnects > 0 {
		t.Errorf("%d clients saw their connection break", report.Run.Reconnects)
	}
}

// A node is killed by SIGKILL, which notifies no client. All reconnect in time, spread
// out, and miss no message.
func TestClientsOfAKilledNodeReconnectSpreadOut(t *testing.T) {
	r := startMoveScenario(t, nil, 100, handshakeLimit)
	r.targetAddr.Store(&r.b.Addr)
	began := time.Now()
	r.a.Kill()
	// Each client waits a random part of half a second: a fifth of them come in each tenth.
	const slice = 100 * time.Millisecond
	r.waitFor("every client on the second node", func() bool { return r.clientsOn(r.b) == r.clients })
	took := time.Since(began)
	if most := r.maxHandshakesWithin(slice); most > r.clients/2 {
		t.Errorf("%d of %d clients were back within one tenth of a second: a thundering herd", most, r.clients)
	}
	r.waitMoved()
	if took > 25*time.Second {
		t.Errorf("all were back after %v", took)
	}
	report := r.finish()
	t.Logf("%d clients back after %v, %d attempts", r.clients, took.Round(10*time.Millisecond), report.Run.Reconnects)
}

// A node is undrained before all of its clients have moved: both nodes serve, and no
// message is lost.
func TestACanceledDrainLosesNothing(t *testing.T) {
	parallelUnlessLongMoves(t)
	r := startMoveScenario(t, map[string]string{"DRAIN_WINDOW": "20s", "DEPLOYMENT": ""}, 100, handshakeLimit)
	r.targetAddr.Store(&r.b.Addr)
	if code, out := run(t, []string{"ADMIN_ADDR=" + r.a.Admin}, "drain", "-wait=false"); code != 0 {
		t.Fatalf("drain: %d %s", code, out)
	}
	// Most of the window is left, so that a busy machine undrains before its end, too.
	moved := r.clients / 10
	if *longMoves > 0 {
		moved = r.clients / 4
	}
	r.waitFor("some of the clients to have moved", func() bool { return r.clientsOn(r.b) >= moved })
	if code, out := run(t, []string{"ADMIN_ADDR=" + r.a.Admin}, "undrain"); code != 0 {
		t.Fatalf("undrain: %d %s", code, out)
	}
	if err := r.a.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	asked := metric(t, r.a, `websocket_moves_total{result="told"}`)
	delivered := r.run.Progress().Delivered
	r.waitFor("messages on both nodes", func() bool { return r.run.Progress().Delivered > delivered+int64(10*r.clients) })
	if more := metric(t, r.a, `websocket_moves_total{result="told"}`) - asked; more > 0 {
		t.Errorf("%.0f clients were asked to move after the drain was canceled", more)
	}
	if r.clientsOn(r.a) == 0 || r.clientsOn(r.b) == 0 {
		t.Errorf("%d clients on the first node, %d on the second; both should serve", r.clientsOn(r.a), r.clientsOn(r.b))
	}
	r.finish()
	r.a.Kill() // with clients that the run left behind
}

func grepLines(text, word string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found += line
		}
	}
	return found
}
