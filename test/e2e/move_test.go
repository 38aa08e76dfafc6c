package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

var longMoves = flag.Int("moves.clients", 0, "how many clients are moved, as by `make moves`; 0 is the short form")

const (
	// handshakeLimit is the first node's MAX_HANDSHAKE_RATE, the default.
	handshakeLimit = 500
	// moveLimit is how long a node may take to go: DRAIN_TIMEOUT and 25 s.
	moveLimit = 70 * time.Second
)

// A moveScenario is two nodes behind one name that leads to the first, and a crowd
// on it. Who connects asks where the name leads: a proxy in between would cost as
// much as both nodes do.
type moveScenario struct {
	t          *testing.T
	a, b       *testkit.Server
	targetAddr atomic.Pointer[string]
	run        *load.Run
	clients    int

	mu    sync.Mutex
	dials []time.Time // of the second node, as they began
}

// startMoveScenario starts it: a few hundred clients, or thousands, 50 in a room, of
// which half publish, each every five seconds. The second node takes so many
// handshakes a second.
func startMoveScenario(t *testing.T, env map[string]string, limit int) *moveScenario {
	t.Helper()
	plan := load.Plan{Clients: 200, Rooms: 20, Rate: 100, Duration: 3 * time.Minute, Settle: time.Minute}
	start := testkit.StartServer
	if *longMoves > 0 {
		n := *longMoves
		plan = load.Plan{
			Clients: n, Publishers: n / 2, Rooms: max(1, n/50), Rate: float64(n) / 10,
			Duration: 5 * time.Minute, RampUp: time.Duration(n) * 3 * time.Millisecond, Settle: time.Minute,
		}
		start = testkit.StartPlainServer // 5,000 clients of the race detector's are too many for two cores
	}
	all := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.Redis(t).URL(),
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
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	run, err := load.Start(ctx, plan)
	if err != nil {
		t.Fatal(err)
	}
	r.run = run
	r.waitFor("messages on the first node", func() bool { return run.Progress().Delivered > int64(plan.Clients) })
	// The baseline: what the longest pauses are while nothing happens.
	run.BeginPhase()
	baseline := run.Progress().Acked + int64(3*plan.Rate)
	if *longMoves > 0 {
		baseline += int64(12 * plan.Rate)
	}
	r.waitFor("the baseline", func() bool { return run.Progress().Acked >= baseline })
	run.BeginPhase()
	return r
}

// maxHandshakesWithin is how many handshakes the second node was asked for within so long, at
// whatever moment that began. It is counted where they begin: a node's own count
// is read now and then, by a request that a busy machine answers late.
func (r *moveScenario) maxHandshakesWithin(within time.Duration) (most int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dials) < r.clients {
		r.t.Errorf("%d handshakes were counted, for %d clients", len(r.dials), r.clients)
	}
	for first, next := 0, 0; first < len(r.dials); first++ {
		for next < len(r.dials) && r.dials[next].Sub(r.dials[first]) < within {
			next++
		}
		most = max(most, next-first)
	}
	return most
}

// waitMoved is where a story ends: what follows is no part of the move.
func (r *moveScenario) waitMoved() {
	r.t.Helper()
	r.waitFor("everybody on the second node", func() bool { return r.clientsOn(r.b) == r.clients })
	wantDelivered := r.run.Progress().Delivered + int64(2*r.clients)
	r.waitFor("messages on the second node", func() bool { return r.run.Progress().Delivered > wantDelivered })
	r.run.BeginPhase()
}

func (r *moveScenario) waitFor(what string, ok func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	waitFor(ctx, r.t, what, ok)
}

// clientsOn is how many clients a node has.
func (r *moveScenario) clientsOn(s *testkit.Server) int {
	return int(readSeries(r.t, s, "websocket_active_connections"))
}

// readSeries reads a series of a node, 0 where it is not there.
func readSeries(t *testing.T, s *testkit.Server, series string) (v float64) {
	t.Helper()
	for line := range strings.Lines(get(t, s.URL()+"/metrics")) {
		if text, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(text, &v); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	return v
}

// finish ends the run: whatever happened, nothing was lost, doubled or
// reordered, and nobody was turned away.
func (r *moveScenario) finish() *load.Report {
	r.t.Helper()
	r.run.Stop()
	report := r.run.Report()
	if report.Verdict != load.Clean || report.Gaps > 0 || report.Unknown > 0 || len(report.Run.Rejected) > 0 {
		r.t.Errorf("%s", report)
	}
	r.t.Logf("%d acked, %d delivered, %d reconnects", report.Acked, report.Delivered, report.Run.Reconnects)
	for phase, what := range map[int]string{1: "before", 2: "meanwhile"} {
		pauses := phasePauses(report, phase)
		r.t.Logf("longest pause of a client %s: p50 %v, p99 %v, worst %v", what,
			pauses.Quantile(.5).Round(time.Millisecond), pauses.Quantile(.99).Round(time.Millisecond), pauses.Max().Round(time.Millisecond))
	}
	return report
}

// phasePauses are the clients' longest pauses in one phase of the run: 1 is the
// baseline, 2 the move.
func phasePauses(r *load.Report, phase int) *load.Latencies {
	l := new(load.Latencies)
	for _, s := range r.Subscribers {
		l.Add(time.Duration(s.Pauses[phase]))
	}
	return l
}

// A deploy is a move: SIGTERM to a node whose clients go on, each on its new
// connection before it lets go of the old one, on the other node.
func TestADeployMovesEveryClient(t *testing.T) {
	// Few clients would come nowhere near a limit within their window: it is
	// for the limit alone that the short form takes as long as it does.
	env, limit := map[string]string{"DRAIN_WINDOW": "1s"}, 40
	if *longMoves > 0 {
		env, limit = nil, handshakeLimit
	}
	r := startMoveScenario(t, env, limit)
	r.targetAddr.Store(&r.b.Addr)
	began := time.Now()
	gone := make(chan error, 1)
	go func() { gone <- r.a.StopWithin(moveLimit) }()
	var exit error
	r.waitFor("the first node to exit", func() bool {
		select {
		case exit = <-gone:
			return true
		default:
			return false
		}
	})
	took := time.Since(began)
	if exit != nil {
		t.Errorf("exit after %v: %v\n%s", took, exit, r.a.Output())
	}
	moves := r.run.Progress().Moves
	if int(moves) < r.clients {
		t.Errorf("%d of %d clients moved; the others were closed\n%s", moves, r.clients, grepLines(r.a.Output(), "drain"))
	}
	r.waitMoved()
	// The limit is one a second, so no second may hold more; nor did the node refuse any.
	most := r.maxHandshakesWithin(time.Second)
	if refused := readSeries(t, r.b, `websocket_connections_total{result="too_fast"}`); refused > 0 || most > limit {
		t.Errorf("%v handshakes were over the second node's limit, %d came within a second", refused, most)
	}
	report := r.finish()
	t.Logf("moved %d clients, exit after %v, at most %d handshakes in a second of %d\n%s", moves, took.Round(10*time.Millisecond),
		most, limit, grepLines(r.a.Output(), `"drain`))
	if report.Run.Reconnects > 0 {
		t.Errorf("%d clients saw their connection break", report.Run.Reconnects)
	}
}

// The same by kill -9: nobody is told, and everybody is back in time, spread,
// with nothing missed.
func TestClientsOfAKilledNodeReconnectSpreadOut(t *testing.T) {
	r := startMoveScenario(t, nil, handshakeLimit)
	r.targetAddr.Store(&r.b.Addr)
	began := time.Now()
	r.a.Kill()
	// They choose their moment within half a second: a fifth of them in a tenth.
	const slice = 100 * time.Millisecond
	r.waitFor("everybody on the second node", func() bool { return r.clientsOn(r.b) == r.clients })
	took := time.Since(began)
	if most := r.maxHandshakesWithin(slice); most > r.clients/2 {
		t.Errorf("%d of %d clients were back in one tenth of a second: a herd", most, r.clients)
	}
	r.waitMoved()
	if took > 25*time.Second {
		t.Errorf("all were back after %v", took)
	}
	report := r.finish()
	t.Logf("%d clients back after %v, %d attempts", r.clients, took.Round(10*time.Millisecond), report.Run.Reconnects)
}

// A drain is taken back midway: both nodes serve, and nothing is lost.
func TestADrainTakenBackLosesNothing(t *testing.T) {
	r := startMoveScenario(t, map[string]string{"DRAIN_WINDOW": "30s", "DEPLOYMENT": ""}, handshakeLimit)
	r.targetAddr.Store(&r.b.Addr)
	if code, out := run(t, []string{"ADMIN_ADDR=" + r.a.Admin}, "drain", "-wait=false"); code != 0 {
		t.Fatalf("drain: %d %s", code, out)
	}
	r.waitFor("half of them to have moved", func() bool { return r.clientsOn(r.b) >= r.clients/2 })
	if code, out := run(t, []string{"ADMIN_ADDR=" + r.a.Admin}, "undrain"); code != 0 {
		t.Fatalf("undrain: %d %s", code, out)
	}
	if err := r.a.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	asked := readSeries(t, r.a, `websocket_moves_total{result="told"}`)
	delivered := r.run.Progress().Delivered
	r.waitFor("messages on both nodes", func() bool { return r.run.Progress().Delivered > delivered+int64(10*r.clients) })
	if more := readSeries(t, r.a, `websocket_moves_total{result="told"}`) - asked; more > 0 {
		t.Errorf("%.0f were told to move after the drain was taken back", more)
	}
	if r.clientsOn(r.a) == 0 || r.clientsOn(r.b) == 0 {
		t.Errorf("%d clients on the first node, %d on the second; both should serve", r.clientsOn(r.a), r.clientsOn(r.b))
	}
	r.finish()
	r.a.Signal(syscall.SIGKILL) // what is left of the run goes with it
}

func grepLines(text, word string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found += line
		}
	}
	return found
}
