package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// commandKilled is the panic that stands for SIGKILL: the command ends without a
// chance to tidy up.
type commandKilled struct{}

// modelMemoryLimit is the memory limit of each replica in bytes.
const modelMemoryLimit = 1 << 30

// imageFaults says how the containers of an image misbehave.
type imageFaults struct {
	neverReady bool
	unready    func(age time.Duration) bool
	crashAfter time.Duration
	errors     float64       // share of operations that fail
	p95        time.Duration // 0 means fast
	memory     func(age time.Duration) float64
	stale      time.Duration // after this time its canary is stale
	loses      float64       // share of the clients moved to it that never reconnect
	smoke      error
	page       error // the error of loading the page
}

// A modelEnv implements all Dependencies in memory, with a clock that only Sleep
// and Verify advance. It counts the calls, and can kill the command in one of them: before the
// call has any effect, or after.
type modelEnv struct {
	t              *testing.T
	now            time.Time
	route          stack.Route
	routeErr       error // active.yml can't be read by anyone
	ignoresChanges bool  // Traefik does not follow active.yml
	statusErr      error // Traefik's API does not answer
	balancerRoute  stack.Route

	replicas       map[stack.Color][]stack.Replica
	startedAt      map[string]time.Time
	drainStartedAt map[string]time.Time
	images         map[string]imageFaults

	clients     map[stack.Color]int
	lostClients int // clients that did not reconnect

	dbDown                   func(now time.Time) bool
	metricsErr               error
	oldFaults                imageFaults // of the first deployment
	notifications            []Notification
	savedDiagnostics, pruned []string
	smokeTests               int
	listedServers            int // the number in the last SetServers
	startFails, undrainFails int // how many of the next calls fail
	onSleep                  func()

	callsUntilKill int // negative means never
	calls          int
	invariantsOn   bool // off while the first deployment is set up
}

func newModelEnv(t *testing.T) *modelEnv {
	m := &modelEnv{
		t: t, now: time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC), route: stack.Route{Live: stack.Blue}, balancerRoute: stack.Route{Live: stack.Blue},
		replicas: map[stack.Color][]stack.Replica{}, startedAt: map[string]time.Time{}, drainStartedAt: map[string]time.Time{},
		images: map[string]imageFaults{"v1": {}, "v2": {}, "v3": {}}, clients: map[stack.Color]int{stack.Blue: 1000}, callsUntilKill: -1,
		dbDown: func(time.Time) bool { return false },
	}
	m.apply(stack.ColorSpec{Color: stack.Blue, Image: stack.Image{Ref: "v1", ID: "id-v1"}, Deployment: "first", Replicas: 3})
	m.now = m.now.Add(time.Hour)
	m.invariantsOn = true
	return m
}

// trackCall counts the beginning of a call, and returns a function that counts its
// end. A kill can come at both.
func (m *modelEnv) trackCall() func() {
	m.countCall()
	return m.countCall
}

// countCall checks the invariants, and kills the command if it is time to.
func (m *modelEnv) countCall() {
	m.calls++
	m.checkInvariants()
	if m.callsUntilKill == 0 {
		panic(commandKilled{})
	}
	m.callsUntilKill--
}

// checkInvariants fails the test unless the live color has a replica that is not
// drained, and at most one color is drained. Both hold at every moment, whatever
// the faults of the images are.
func (m *modelEnv) checkInvariants() {
	if !m.invariantsOn {
		return
	}
	s := m.snapshot()
	if len(s.RunningNames(m.balancerRoute.Live, func(r stack.Replica) bool { return r.Drain == "" })) == 0 {
		m.t.Fatalf("after %d calls: %s is live and has no replica that is not drained: %+v", m.calls, m.balancerRoute.Live, s.Replicas)
	}
	drained := func(c stack.Color) bool {
		running := s.Running(c)
		return len(running) > 0 && !slices.ContainsFunc(running, func(r stack.Replica) bool { return r.Drain == "" })
	}
	if drained(stack.Blue) && drained(stack.Green) {
		m.t.Fatalf("after %d calls both colors are drained", m.calls)
	}
}

// faultsOf returns the faults of a replica's image.
func (m *modelEnv) faultsOf(r stack.Replica) imageFaults {
	if r.Deployment == "first" {
		return m.oldFaults
	}
	return m.images[r.Image.Ref]
}

// snapshot returns the replicas as they are at the model's time.
func (m *modelEnv) snapshot() stack.Snapshot {
	s := stack.Snapshot{At: m.now, Replicas: map[stack.Color][]stack.Replica{}}
	for _, c := range stack.Colors {
		for i := range m.replicas[c] {
			r := &m.replicas[c][i]
			m.advance(c, r)
			s.Replicas[c] = append(s.Replicas[c], *r)
		}
		if n := s.CountServing(c) + len(s.RunningNames(c, func(r stack.Replica) bool { return r.Drain == "moving" })); n > 0 {
			for i := range s.Replicas[c] {
				s.Replicas[c][i].Clients = m.clients[c] / n
			}
		}
	}
	return s
}

// advance updates a replica to the model's time: its health, its drain and its
// clients.
func (m *modelEnv) advance(c stack.Color, r *stack.Replica) {
	f, age := m.faultsOf(*r), m.now.Sub(m.startedAt[r.Name])
	r.UnhealthyComponents = map[string]string{}
	if f.crashAfter > 0 && age > f.crashAfter && r.Running {
		r.Restarts++
		r.ExitReason = "exit code 2"
		m.startedAt[r.Name] = m.now
		age = 0
	}
	r.Reachable = r.Running
	if m.dbDown(m.now) {
		r.UnhealthyComponents["log"] = "down"
	}
	if f.stale > 0 && age > f.stale {
		r.UnhealthyComponents["delivery"] = "stale"
	}
	if begun, draining := m.drainStartedAt[r.Name]; draining {
		r.Drain = "moving"
		if m.now.Sub(begun) >= 5*time.Second {
			r.Drain = "drained"
		}
	} else {
		r.Drain = ""
	}
	unready := f.neverReady || f.unready != nil && f.unready(age)
	r.Ready = r.Running && !unready && age >= 3*time.Second && len(r.UnhealthyComponents) == 0 && r.Drain == ""
	if r.Drain == "drained" && !slices.ContainsFunc(m.replicas[c], func(o stack.Replica) bool { return o.Drain != "drained" }) {
		to := m.balancerRoute.Live
		if to != c && m.clients[c] > 0 {
			lost := int(float64(m.clients[c]) * m.images[m.replicas[to][0].Image.Ref].loses)
			m.clients[to] += m.clients[c] - lost
			m.lostClients += lost
			m.clients[c] = 0
		}
	}
}

// apply makes a color match its spec.
func (m *modelEnv) apply(spec stack.ColorSpec) {
	var kept []stack.Replica
	for _, r := range m.replicas[spec.Color] {
		if r.Deployment == spec.Deployment && r.Image.ID == spec.Image.ID && len(kept) < spec.Replicas {
			r.Running = true
			kept = append(kept, r)
		}
	}
	m.replicas[spec.Color] = kept
	for n := len(kept) + 1; n <= spec.Replicas; n++ {
		if m.invariantsOn && n > 1 {
			m.countCall() // a kill can come after some of the replicas
		}
		name := fmt.Sprintf("app_%s-%d", spec.Color, n)
		delete(m.drainStartedAt, name)
		m.startedAt[name] = m.now
		m.replicas[spec.Color] = append(m.replicas[spec.Color], stack.Replica{
			Name: name, Number: n, Image: spec.Image, Deployment: spec.Deployment, Running: true, MemoryLimit: modelMemoryLimit,
		})
	}
}

func (m *modelEnv) Inspect(context.Context) (stack.Snapshot, error) {
	defer m.trackCall()()
	return m.snapshot(), nil
}

func (m *modelEnv) Start(_ context.Context, spec stack.ColorSpec) error {
	defer m.trackCall()()
	if m.startFails > 0 {
		m.startFails--
		return errors.New("the engine is busy")
	}
	m.apply(spec)
	return nil
}

func (m *modelEnv) Stop(_ context.Context, c stack.Color) error {
	defer m.trackCall()()
	if m.balancerRoute.Live == c {
		m.t.Fatalf("%s was stopped while it was live", c)
	}
	m.clients[m.balancerRoute.Live] += m.clients[c] // they reconnect
	m.clients[c] = 0
	m.replicas[c] = nil
	return nil
}

func (m *modelEnv) Drain(_ context.Context, names []string, _, _ string) error {
	defer m.trackCall()()
	for _, n := range names {
		if _, draining := m.drainStartedAt[n]; !draining {
			m.drainStartedAt[n] = m.now
		}
		m.countCall()
	}
	return nil
}

func (m *modelEnv) Undrain(_ context.Context, names []string) error {
	defer m.trackCall()()
	if m.undrainFails > 0 {
		m.undrainFails--
		return errors.New("no answer")
	}
	for _, n := range names {
		delete(m.drainStartedAt, n)
		m.countCall()
	}
	return nil
}

func (m *modelEnv) Resolve(_ context.Context, ref string) (stack.Image, error) {
	if _, known := m.images[ref]; !known {
		return stack.Image{}, errors.New("no such image: " + ref)
	}
	return stack.Image{Ref: ref, ID: "id-" + ref}, nil
}

func (m *modelEnv) Migrate(context.Context, stack.Image, time.Duration, ...string) ([]byte, error) {
	defer m.trackCall()()
	return nil, nil
}

func (m *modelEnv) Prune(_ context.Context, images []stack.Image) error {
	for _, i := range images {
		m.pruned = append(m.pruned, i.Ref)
	}
	return nil
}

func (m *modelEnv) Route(context.Context) (stack.Route, error) {
	defer m.trackCall()()
	return m.route, m.routeErr
}

func (m *modelEnv) SetRoute(_ context.Context, r stack.Route) error {
	defer m.trackCall()()
	if s := m.snapshot(); m.invariantsOn && s.CountServing(r.Live) == 0 && s.CountServing(r.Live.Other()) > 0 {
		m.t.Fatalf("traffic goes to %s, which has no replica that serves: %+v", r.Live, s.Replicas)
	}
	m.route, m.routeErr = r, nil
	if !m.ignoresChanges {
		m.balancerRoute = r
	}
	return nil
}

func (m *modelEnv) Status(context.Context) (stack.BalancerStatus, error) {
	defer m.trackCall()()
	s := m.snapshot()
	up := map[stack.Color]int{stack.Blue: s.CountServing(stack.Blue), stack.Green: s.CountServing(stack.Green)}
	if m.statusErr != nil {
		return stack.BalancerStatus{}, m.statusErr
	}
	return stack.BalancerStatus{Route: m.balancerRoute, ServersUp: up}, m.routeErr
}

func (m *modelEnv) Smoke(_ context.Context, t checks.Target) error {
	defer m.trackCall()()
	m.smokeTests++
	if t.Replica != nil {
		return m.faultsOf(*t.Replica).smoke
	}
	return nil
}

func (m *modelEnv) Verify(_ context.Context, d time.Duration) (time.Duration, error) {
	defer m.trackCall()()
	m.now = m.now.Add(d)
	return 5 * time.Millisecond, nil
}

// LoadPage loads the page of the live color.
func (m *modelEnv) LoadPage(context.Context) error {
	defer m.trackCall()()
	for _, r := range m.snapshot().Running(m.balancerRoute.Live) {
		return m.faultsOf(r).page
	}
	return errors.New("no replica runs")
}

// Window returns metrics in proportion to a color's clients: a drained color has
// little more than its canaries.
func (m *modelEnv) Window(_ context.Context, deployment string, span time.Duration) (checks.MetricsWindow, error) {
	defer m.trackCall()()
	if m.metricsErr != nil {
		return checks.MetricsWindow{}, m.metricsErr
	}
	for _, c := range stack.Colors {
		for _, r := range m.replicas[c] {
			if r.Deployment != deployment {
				continue
			}
			f := m.faultsOf(r)
			share := float64(m.clients[c]) / 1000
			ops := (300*share + 1) * span.Seconds()
			w := checks.MetricsWindow{Operations: ops, Errors: f.errors * ops, Publishes: ops, P95: 30 * time.Millisecond, CanaryP95: 5 * time.Millisecond, Replicas: 3, MemoryBytes: .2 * modelMemoryLimit}
			if f.p95 > 0 {
				w.P95, w.CanaryP95 = f.p95, f.p95
			}
			if f.memory != nil {
				w.MemoryBytes = f.memory(m.now.Sub(m.startedAt[r.Name])) * modelMemoryLimit
			}
			if m.dbDown(m.now.Add(-span/2)) || m.dbDown(m.now) {
				w.Errors, w.StoreFailed = ops, 1
			}
			return w, nil
		}
	}
	return checks.MetricsWindow{}, nil
}

func (m *modelEnv) SaveDiagnostics(_ context.Context, c stack.Color, folder string) error {
	defer m.trackCall()()
	m.savedDiagnostics = append(m.savedDiagnostics, string(c))
	return nil
}

func (m *modelEnv) Notify(_ context.Context, n Notification) error {
	m.notifications = append(m.notifications, n)
	return nil
}

func (m *modelEnv) Now() time.Time { return m.now }

func (m *modelEnv) Sleep(ctx context.Context, d time.Duration) error {
	defer m.trackCall()()
	if m.onSleep != nil {
		m.onSleep()
	}
	m.now = m.now.Add(d)
	return ctx.Err()
}

// deployer returns a Deployer on the model, with its state in a real folder.
func (m *modelEnv) deployer(state string) *Deployer {
	s := StateDir{Dir: state, onWrite: func(string) { m.countCall() }}
	return &Deployer{Deps: Dependencies{m, m, m, m, m, m, m, m}, State: s, Settings: DefaultSettings()}
}

// stateFolder returns a new folder, in memory if the system has one there: tests
// write and sync the state thousands of times.
func stateFolder(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "deploy")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// runUntilKilled runs a command that is killed after a number of calls, and reports
// whether it was killed.
func (m *modelEnv) runUntilKilled(calls int, command func() (HistoryEntry, error)) (e HistoryEntry, err error, died bool) {
	m.callsUntilKill = calls
	defer func() {
		m.callsUntilKill = -1
		if p := recover(); p != nil {
			if _, ok := p.(commandKilled); !ok {
				panic(p)
			}
			died = true
		}
	}()
	e, err = command()
	return e, err, false
}
