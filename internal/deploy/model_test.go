package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// killed is how a model world ends the command: as SIGKILL does, with no
// chance to tidy up.
type killed struct{}

// A bad is what is wrong with an image.
type bad struct {
	neverReady bool
	unready    func(age time.Duration) bool
	crashAfter time.Duration
	errors     float64       // share of operations
	p95        time.Duration // 0: as good ones
	memory     func(age time.Duration) float64
	stale      time.Duration // its canary, after so long
	loses      float64       // share of the clients moved here that never come
	smoke      error
	page       error // what loading it gives
}

// A modelWorld is a world of memory and a clock that only sleeping moves. Calls are
// counted down, and the last one kills the command: before it did anything, or
// after.
type modelWorld struct {
	t      *testing.T
	now    time.Time
	route  Route
	routed error // active.yml can't be read, by us or by the balancer
	deaf   bool  // Traefik does not see changes
	heard  Route

	replicas map[Color][]Replica
	born     map[string]time.Time
	drains   map[string]time.Time
	images   map[string]bad

	clients map[Color]int
	away    int // clients that are nowhere

	dbDown       func(now time.Time) bool
	metricsErr   error
	migrateErr   error
	oldAsBad     bad // what the old color shows
	notices      []Notice
	kept, pruned []string
	smokes       int
	listed       int // replicas that the balancer was told of by scale

	left    int // calls until the kill; negative: never
	calls   int
	checked bool // a live color once served
}

func newModel(t *testing.T) *modelWorld {
	m := &modelWorld{
		t: t, now: time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC), route: Route{Live: Blue}, heard: Route{Live: Blue},
		replicas: map[Color][]Replica{}, born: map[string]time.Time{}, drains: map[string]time.Time{},
		images: map[string]bad{"v1": {}, "v2": {}, "v3": {}}, clients: map[Color]int{Blue: 1000}, left: -1,
		dbDown: func(time.Time) bool { return false },
	}
	m.launch(Launch{Color: Blue, Image: Image{Ref: "v1", ID: "id-v1"}, Deployment: "first", Replicas: 3})
	m.now = m.now.Add(time.Hour)
	m.checked = true
	return m
}

// call is the begin and the end of each call: where a kill may fall.
func (m *modelWorld) call() func() {
	m.count()
	return m.count
}

func (m *modelWorld) count() {
	m.calls++
	m.hold()
	if m.left == 0 {
		panic(killed{})
	}
	m.left--
}

// hold is what must be true at every moment, whatever ails the images: who is
// live has not been drained or stopped, and never are both colors drained.
func (m *modelWorld) hold() {
	if !m.checked {
		return
	}
	s := m.sight()
	if len(s.names(m.heard.Live, func(r Replica) bool { return r.Drain == "" })) == 0 {
		m.t.Fatalf("after %d calls: %s is live and nobody is there: %+v", m.calls, m.heard.Live, s.Replicas)
	}
	drained := func(c Color) bool {
		of := s.Of(c)
		return len(of) > 0 && !slices.ContainsFunc(of, func(r Replica) bool { return r.Drain == "" })
	}
	if drained(Blue) && drained(Green) {
		m.t.Fatalf("after %d calls both colors are drained", m.calls)
	}
}

func (m *modelWorld) badness(r Replica) bad {
	if r.Deployment == "first" {
		return m.oldAsBad
	}
	return m.images[r.Image.Ref]
}

// sight is the world as it is now; time alone changes it.
func (m *modelWorld) sight() Sight {
	s := Sight{At: m.now, Replicas: map[Color][]Replica{}}
	for _, c := range Colors {
		for i := range m.replicas[c] {
			r := &m.replicas[c][i]
			m.age(c, r)
			s.Replicas[c] = append(s.Replicas[c], *r)
		}
		if n := s.serving(c) + len(s.names(c, func(r Replica) bool { return r.Drain == "moving" })); n > 0 {
			for i := range s.Replicas[c] {
				s.Replicas[c][i].Clients = m.clients[c] / n
			}
		}
	}
	return s
}

func (m *modelWorld) age(c Color, r *Replica) {
	b, age := m.badness(*r), m.now.Sub(m.born[r.Name])
	r.Parts = map[string]string{}
	if b.crashAfter > 0 && age > b.crashAfter && r.Running {
		r.Restarts++
		r.Ended = "exit code 2"
		m.born[r.Name] = m.now
		age = 0
	}
	r.Answers = r.Running
	if m.dbDown(m.now) {
		r.Parts["log"] = "down"
	}
	if b.stale > 0 && age > b.stale {
		r.Parts["delivery"] = "stale"
	}
	if begun, draining := m.drains[r.Name]; draining {
		r.Drain = "moving"
		if m.now.Sub(begun) >= 5*time.Second {
			r.Drain = "drained"
		}
	} else {
		r.Drain = ""
	}
	unready := b.neverReady || b.unready != nil && b.unready(age)
	r.Ready = r.Running && !unready && age >= 3*time.Second && len(r.Parts) == 0 && r.Drain == ""
	if r.Drain == "drained" && !slices.ContainsFunc(m.replicas[c], func(o Replica) bool { return o.Drain != "drained" }) {
		to := m.heard.Live
		if to != c && m.clients[c] > 0 {
			lost := int(float64(m.clients[c]) * m.images[m.replicas[to][0].Image.Ref].loses)
			m.clients[to] += m.clients[c] - lost
			m.away += lost
			m.clients[c] = 0
		}
	}
}

func (m *modelWorld) launch(l Launch) {
	var kept []Replica
	for _, r := range m.replicas[l.Color] {
		if r.Deployment == l.Deployment && r.Image.ID == l.Image.ID && len(kept) < l.Replicas {
			r.Running = true
			kept = append(kept, r)
		}
	}
	m.replicas[l.Color] = kept
	for n := len(kept) + 1; n <= l.Replicas; n++ {
		if m.checked && n > 1 {
			m.count() // killed while some are there
		}
		name := fmt.Sprintf("app_%s-%d", l.Color, n)
		delete(m.drains, name)
		m.born[name] = m.now
		m.replicas[l.Color] = append(m.replicas[l.Color], Replica{
			Name: name, Number: n, Image: l.Image, Deployment: l.Deployment, Running: true,
		})
	}
}

func (m *modelWorld) Look(context.Context) (Sight, error) {
	defer m.call()()
	return m.sight(), nil
}

func (m *modelWorld) Start(_ context.Context, l Launch) error {
	defer m.call()()
	m.launch(l)
	return nil
}

func (m *modelWorld) Stop(_ context.Context, c Color) error {
	defer m.call()()
	if m.heard.Live == c {
		m.t.Fatalf("%s was stopped while it was live", c)
	}
	m.clients[m.heard.Live] += m.clients[c] // they come back by themselves
	m.clients[c] = 0
	m.replicas[c] = nil
	return nil
}

func (m *modelWorld) Drain(_ context.Context, names []string, _, _ string) error {
	defer m.call()()
	for _, n := range names {
		if _, draining := m.drains[n]; !draining {
			m.drains[n] = m.now
		}
		m.count()
	}
	return nil
}

func (m *modelWorld) Undrain(_ context.Context, names []string) error {
	defer m.call()()
	for _, n := range names {
		delete(m.drains, n)
		m.count()
	}
	return nil
}

func (m *modelWorld) Resolve(_ context.Context, ref string) (Image, error) {
	if _, known := m.images[ref]; !known {
		return Image{}, errors.New("no such image: " + ref)
	}
	return Image{Ref: ref, ID: "id-" + ref}, nil
}

func (m *modelWorld) Migrate(context.Context, Image) error {
	defer m.call()()
	return m.migrateErr
}

func (m *modelWorld) Prune(_ context.Context, images []Image) error {
	for _, i := range images {
		m.pruned = append(m.pruned, i.Ref)
	}
	return nil
}

func (m *modelWorld) Route(context.Context) (Route, error) {
	defer m.call()()
	return m.route, m.routed
}

func (m *modelWorld) Set(_ context.Context, r Route) error {
	defer m.call()()
	if s := m.sight(); m.checked && s.serving(r.Live) == 0 && s.serving(r.Live.Other()) > 0 {
		m.t.Fatalf("traffic goes to %s, where nobody serves: %+v", r.Live, s.Replicas)
	}
	m.route, m.routed = r, nil
	if !m.deaf {
		m.heard = r
	}
	return nil
}

func (m *modelWorld) Serving(context.Context) (Serving, error) {
	defer m.call()()
	s := m.sight()
	return Serving{Route: m.heard, Up: map[Color]int{Blue: s.serving(Blue), Green: s.serving(Green)}}, m.routed
}

func (m *modelWorld) Smoke(_ context.Context, t Target) error {
	defer m.call()()
	m.smokes++
	if t.Replica != nil {
		return m.badness(*t.Replica).smoke
	}
	return nil
}

func (m *modelWorld) Verify(_ context.Context, d time.Duration) (time.Duration, error) {
	defer m.call()()
	m.now = m.now.Add(d)
	return 5 * time.Millisecond, nil
}

// Page is what the live color shows.
func (m *modelWorld) Page(context.Context) error {
	defer m.call()()
	for _, r := range m.sight().Of(m.heard.Live) {
		return m.badness(r).page
	}
	return errors.New("nobody is there")
}

// Window is what the replicas of a deployment measured: those with clients
// much, a drained one its canaries.
func (m *modelWorld) Window(_ context.Context, deployment string, span time.Duration) (Window, error) {
	defer m.call()()
	if m.metricsErr != nil {
		return Window{}, m.metricsErr
	}
	for _, c := range Colors {
		for _, r := range m.replicas[c] {
			if r.Deployment != deployment {
				continue
			}
			b := m.badness(r)
			share := float64(m.clients[c]) / 1000
			ops := (300*share + 1) * span.Seconds()
			w := Window{Operations: ops, Errors: b.errors * ops, Publishes: ops, P95: 30 * time.Millisecond, CanaryP95: 5 * time.Millisecond, Seen: 3, Memory: .2}
			if b.p95 > 0 {
				w.P95, w.CanaryP95 = b.p95, b.p95
			}
			if b.memory != nil {
				w.Memory = b.memory(m.now.Sub(m.born[r.Name]))
			}
			if m.dbDown(m.now.Add(-span/2)) || m.dbDown(m.now) {
				w.Errors, w.StoreFailed = ops, 1
			}
			return w, nil
		}
	}
	return Window{}, nil
}

func (m *modelWorld) Keep(_ context.Context, c Color, folder string) error {
	defer m.call()()
	m.kept = append(m.kept, string(c))
	return nil
}

func (m *modelWorld) Tell(_ context.Context, n Notice) error {
	m.notices = append(m.notices, n)
	return nil
}

func (m *modelWorld) Now() time.Time { return m.now }

func (m *modelWorld) Sleep(ctx context.Context, d time.Duration) error {
	defer m.call()()
	m.now = m.now.Add(d)
	return ctx.Err()
}

// machine is a machine on the model, with its state in a real folder.
func (m *modelWorld) machine(state string) *Machine {
	w := World{m, m, m, m, m, m, m, m}
	s := State{Dir: state, touch: func(string) { m.count() }}
	return &Machine{World: w, State: s, Settings: DefaultSettings()}
}

// folder is one in memory, where there is such: a state is written and synced
// thousands of times.
func folder(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "deploy")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// run runs a command and tells whether it was killed after so many calls.
func (m *modelWorld) run(calls int, command func() (Entry, error)) (e Entry, err error, died bool) {
	m.left = calls
	defer func() {
		m.left = -1
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			died = true
		}
	}()
	e, err = command()
	return e, err, false
}
