package deploy

import (
	"context"
	"slices"
	"time"
)

// The interfaces are what the machine needs of the world. Each call may be made
// again with the same arguments, by the next command after this one was killed
// in it: it brings about a state, and is no event.

// Containers are the replicas of both colors.
type Containers interface {
	// Inspect tells what there is, running or not.
	Inspect(ctx context.Context) (Snapshot, error)
	// Start brings a color to what a Launch says and returns without waiting for
	// it to be ready. Replicas that are right already stay as they are.
	Start(ctx context.Context, l ColorSpec) error
	// Stop stops and removes a color's replicas.
	Stop(ctx context.Context, c Color) error
}

// Clients are moved away from replicas, and let in again.
type Clients interface {
	// Drain has the replicas begin to let go of their clients; Look tells how
	// far they are.
	Drain(ctx context.Context, replicas []string, scope, reason string) error
	Undrain(ctx context.Context, replicas []string) error
}

// Images are what is deployed.
type Images interface {
	// Resolve finds an image, and fetches it when it is not here.
	Resolve(ctx context.Context, ref string) (Image, error)
	// Migrate brings the database to the image's schema.
	Migrate(ctx context.Context, image Image) error
	// Prune removes the images given, unless something uses them.
	Prune(ctx context.Context, images []Image) error
}

// Traffic is where new connections go.
type Traffic interface {
	// Route reads what the record says.
	Route(ctx context.Context) (Route, error)
	// SetRoute writes the record, whole or not at all.
	SetRoute(ctx context.Context, r Route) error
	// Status asks the balancer what it does. Beside an error that is about its
	// routers Up is told nevertheless.
	Status(ctx context.Context) (BalancerStatus, error)
}

// Probes act as clients do.
type Probes interface {
	// Smoke joins, publishes, receives and resumes.
	Smoke(ctx context.Context, t Target) error
	// Verify has many clients do so for a while, judges the history, and tells the
	// p95 from their publishes to the acks.
	Verify(ctx context.Context, d time.Duration) (time.Duration, error)
	// LoadPage loads the page and what it needs, from outside.
	LoadPage(ctx context.Context) error
}

// Metrics are what the replicas of a deployment measured lately.
type Metrics interface {
	Window(ctx context.Context, deployment string, span time.Duration) (MetricsWindow, error)
}

// Records keep what people will ask about.
type Records interface {
	// SaveDiagnostics writes a color's logs, state, metrics and heap profile below a folder.
	SaveDiagnostics(ctx context.Context, c Color, folder string) error
	// Notify sends a notice to whoever wants to know.
	Notify(ctx context.Context, n Notification) error
}

// Clock is time.
type Clock interface {
	Now() time.Time
	// Sleep waits, or returns ctx's error when it ends first.
	Sleep(ctx context.Context, d time.Duration) error
}

// An Image is a reference and what it stood for when it was resolved: a tag may
// be moved later.
type Image struct {
	Ref string `json:"ref"`
	// ID is the engine's, a digest of its contents.
	ID string `json:"id"`
}

// A ColorSpec says how a color is to run.
type ColorSpec struct {
	Color      Color  `json:"color"`
	Image      Image  `json:"image"`
	Deployment string `json:"deployment"`
	Replicas   int    `json:"replicas"`
}

// A Snapshot is what the world looked like at one moment.
type Snapshot struct {
	At       time.Time           `json:"at"`
	Replicas map[Color][]Replica `json:"replicas"`
}

// A Replica is one container of a color.
type Replica struct {
	Name       string `json:"name"`
	Number     int    `json:"number"`
	Image      Image  `json:"image"`
	Deployment string `json:"deployment"`
	Version    string `json:"version,omitempty"`
	Running    bool   `json:"running"`
	// Restarts counts how often the engine has started it again, and Ended says
	// how it ended last, when it did.
	Restarts   int    `json:"restarts"`
	ExitReason string `json:"ended,omitempty"`
	// Address is host:port inside its network.
	Address string `json:"address,omitempty"`
	// MemoryLimit is in bytes; 0: none.
	MemoryLimit int64 `json:"memory_limit,omitempty"`
	Health
}

// Health is what a replica says of itself.
type Health struct {
	// Reachable: it was reached at all.
	Reachable bool `json:"answers"`
	// Ready: it takes new connections.
	Ready bool `json:"ready"`
	// Drain is delay, moving, closing or drained; empty when it serves.
	Drain string `json:"drain,omitempty"`
	// UnhealthyComponents are its components that are not up, by name.
	UnhealthyComponents map[string]string `json:"parts,omitempty"`
	Clients             int               `json:"clients"`
	// LostClients counts clients of the present drain whose connection broke.
	LostClients int `json:"lost,omitempty"`
}

// Serves tells whether the replica takes clients.
func (r Replica) Serves() bool { return r.Running && r.Ready && r.Drain == "" }

// problem is why it does not do well, draining apart; empty when it does.
func (r Replica) problem() string {
	switch {
	case !r.Running:
		return "it does not run: " + orElse(r.ExitReason, "it was stopped")
	case !r.Reachable:
		return "it does not answer"
	}
	for _, part := range []string{"log", "delivery"} { // those it is not ready without
		if state := r.UnhealthyComponents[part]; state != "" {
			return part + " " + state
		}
	}
	if !r.Ready && r.Drain == "" {
		return "it is not ready"
	}
	return ""
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Running returns a color's replicas that run.
func (s Snapshot) Running(c Color) []Replica {
	return slices.DeleteFunc(slices.Clone(s.Replicas[c]), func(r Replica) bool { return !r.Running })
}

// countServing is how many of a color's replicas take clients.
func (s Snapshot) countServing(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		if r.Serves() {
			n++
		}
	}
	return n
}

// countClients is how many a color has.
func (s Snapshot) countClients(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		n += r.Clients
	}
	return n
}

// runningNames are the names of a color's running replicas that pass.
func (s Snapshot) runningNames(c Color, pass func(Replica) bool) (names []string) {
	for _, r := range s.Running(c) {
		if pass(r) {
			names = append(names, r.Name)
		}
	}
	return names
}

// BalancerStatus is what the balancer says.
type BalancerStatus struct {
	Route Route `json:"route"`
	// ServersUp is how many servers of a color it sends connections to.
	ServersUp map[Color]int `json:"up"`
}

// A Target is where a probe connects: one replica, or the balancer from outside
// when Replica is nil. What answers has to be of the deployment.
type Target struct {
	Replica    *Replica
	Deployment string
}

// A MetricsWindow is what a deployment's replicas did in a span of time, together.
type MetricsWindow struct {
	// Operations are frames, handshakes and requests; Errors those that failed
	// by our fault.
	Operations float64 `json:"operations"`
	Errors     float64 `json:"errors"`
	// Publishes are those whose duration is known, and P95 bounds the quickest
	// 95 of 100.
	Publishes float64       `json:"publishes"`
	P95       time.Duration `json:"p95"`
	// StoreFailed is how many publications the log refused, canaries included,
	// and CanaryP95 the canaries' duration. A drained color has them too.
	StoreFailed float64       `json:"store_failed"`
	CanaryP95   time.Duration `json:"canary_p95"`
	// Memory is the fullest replica's resident share of its limit, 0 when it has
	// none.
	Memory float64 `json:"memory"`
	// Replicas is how many replicas the metrics are of.
	Replicas int `json:"seen"`
}

// ErrorRatio is the share of operations that failed by our fault.
func (w MetricsWindow) ErrorRatio() float64 {
	if w.Operations == 0 {
		return 0
	}
	return w.Errors / w.Operations
}
