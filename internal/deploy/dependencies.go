package deploy

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// These interfaces are all that a Deployer needs of its environment. Each call is
// idempotent: a command that was killed in a call is followed by another command
// that makes the same call again.

// Containers are the replicas of both colors.
type Containers interface {
	// Inspect returns the replicas of both colors, running or not.
	Inspect(ctx context.Context) (Snapshot, error)
	// Start makes a color match its spec, and returns without waiting for it to be
	// ready. Replicas that already match the spec stay as they are.
	Start(ctx context.Context, spec ColorSpec) error
	// Stop stops and removes a color's replicas.
	Stop(ctx context.Context, c Color) error
}

// Clients drains replicas and lets them serve again.
type Clients interface {
	// Drain starts a drain on the replicas and does not wait for it: Inspect
	// shows how far it is.
	Drain(ctx context.Context, replicas []string, scope, reason string) error
	Undrain(ctx context.Context, replicas []string) error
}

// Images finds, prepares and removes images.
type Images interface {
	// Resolve finds an image on the host, and pulls it if it is not there.
	Resolve(ctx context.Context, ref string) (Image, error)
	// Migrate migrates the database to the image's schema.
	Migrate(ctx context.Context, image Image) error
	// Prune removes the images that nothing uses.
	Prune(ctx context.Context, images []Image) error
}

// Traffic decides where new connections go.
type Traffic interface {
	// Route reads the route from active.yml.
	Route(ctx context.Context) (Route, error)
	// SetRoute replaces active.yml atomically.
	SetRoute(ctx context.Context, r Route) error
	// Status asks the balancer for the route that it follows. If its routers are
	// broken, Status returns an error and still sets ServersUp.
	Status(ctx context.Context) (BalancerStatus, error)
}

// Probes act as clients do.
type Probes interface {
	// Smoke joins, publishes, receives and resumes.
	Smoke(ctx context.Context, t Target) error
	// Verify runs many clients for d, checks what they received, and returns the
	// p95 from a publish to its ack.
	Verify(ctx context.Context, d time.Duration) (time.Duration, error)
	// LoadPage loads the page and its script from outside.
	LoadPage(ctx context.Context) error
}

// Metrics returns what the replicas of a deployment measured in the last span.
type Metrics interface {
	Window(ctx context.Context, deployment string, span time.Duration) (MetricsWindow, error)
}

// Records saves diagnostics and sends notifications.
type Records interface {
	// SaveDiagnostics writes a color's logs, state, metrics and heap profiles into
	// a folder.
	SaveDiagnostics(ctx context.Context, c Color, folder string) error
	// Notify sends a notification to the receivers of the settings.
	Notify(ctx context.Context, n Notification) error
}

// Clock is the source of time; tests replace it.
type Clock interface {
	Now() time.Time
	// Sleep waits for d, or returns ctx's error when ctx ends first.
	Sleep(ctx context.Context, d time.Duration) error
}

// An Image is a reference and the id that it had when it was resolved: a tag can
// be moved later.
type Image struct {
	Ref string `json:"ref"`
	// ID is the engine's digest of the contents.
	ID string `json:"id"`
}

// A ColorSpec is the state that a color should have.
type ColorSpec struct {
	Color      Color  `json:"color"`
	Image      Image  `json:"image"`
	Deployment string `json:"deployment"`
	Replicas   int    `json:"replicas"`
}

// A Snapshot is the state of all replicas at one moment.
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
	// Restarts is how often the engine restarted the container. ExitReason says
	// how it ended last, and is empty if it never did.
	Restarts   int    `json:"restarts"`
	ExitReason string `json:"ended,omitempty"`
	// Address is host:port inside its network.
	Address string `json:"address,omitempty"`
	// MemoryLimit is in bytes; 0 means no limit.
	MemoryLimit int64 `json:"memory_limit,omitempty"`
	Health
}

// Health is what a replica reports of itself.
type Health struct {
	// Reachable is false if the replica did not answer at all.
	Reachable bool `json:"answers"`
	// Ready means that it takes new connections.
	Ready bool `json:"ready"`
	// Drain is the phase of its drain (delay, moving, closing or drained), empty
	// when it serves.
	Drain string `json:"drain,omitempty"`
	// UnhealthyComponents maps the components that are not up to their states.
	UnhealthyComponents map[string]string `json:"parts,omitempty"`
	Clients             int               `json:"clients"`
	// LostClients counts clients of the present drain whose connection broke.
	LostClients int `json:"lost,omitempty"`
}

// Serves reports whether the replica takes clients.
func (r Replica) Serves() bool { return r.Running && r.Ready && r.Drain == "" }

// problem says why the replica is unhealthy, or "" if it is healthy. A drain is
// not a problem.
func (r Replica) problem() string {
	switch {
	case !r.Running:
		return "it does not run: " + cmp.Or(r.ExitReason, "it was stopped")
	case !r.Reachable:
		return "it does not answer"
	}
	for _, part := range []string{"log", "delivery"} { // without these it is not ready
		if state := r.UnhealthyComponents[part]; state != "" {
			return part + " " + state
		}
	}
	if !r.Ready && r.Drain == "" {
		return "it is not ready"
	}
	return ""
}

// Running returns the running replicas of a color.
func (s Snapshot) Running(c Color) []Replica {
	return slices.DeleteFunc(slices.Clone(s.Replicas[c]), func(r Replica) bool { return !r.Running })
}

// countServing returns how many of a color's replicas take clients.
func (s Snapshot) countServing(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		if r.Serves() {
			n++
		}
	}
	return n
}

// countClients returns how many clients a color has.
func (s Snapshot) countClients(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		n += r.Clients
	}
	return n
}

// runningNames returns the names of a color's running replicas for which pass is
// true.
func (s Snapshot) runningNames(c Color, pass func(Replica) bool) (names []string) {
	for _, r := range s.Running(c) {
		if pass(r) {
			names = append(names, r.Name)
		}
	}
	return names
}

// BalancerStatus is the state that the balancer reports.
type BalancerStatus struct {
	Route Route `json:"route"`
	// ServersUp is how many servers of each color pass its health check.
	ServersUp map[Color]int `json:"up"`
}

// A Target is where a probe connects: to Replica, or from outside through the
// balancer when Replica is nil. The server that answers must be of the deployment.
type Target struct {
	Replica    *Replica
	Deployment string
}

// A MetricsWindow adds up the metrics of a deployment's replicas over a span of
// time.
type MetricsWindow struct {
	// Operations counts frames, handshakes and requests. Errors counts those of
	// them that failed through a fault of the service, not of the client.
	Operations float64 `json:"operations"`
	Errors     float64 `json:"errors"`
	// Publishes counts the publishes with a known duration, and P95 is the 95th
	// percentile of these durations.
	Publishes float64       `json:"publishes"`
	P95       time.Duration `json:"p95"`
	// StoreFailed counts the publications that the log refused, canaries included,
	// and CanaryP95 is the 95th percentile of the canaries' durations. A drained
	// color has both.
	StoreFailed float64       `json:"store_failed"`
	CanaryP95   time.Duration `json:"canary_p95"`
	// Memory is the largest share of the memory limit that a replica uses
	// (resident memory), from 0 to 1, and 0 when there is no limit.
	Memory float64 `json:"memory"`
	// Replicas is how many replicas have metrics.
	Replicas int `json:"seen"`
}

// ErrorRatio returns the share of operations that failed through a fault of the
// service, from 0 to 1.
func (w MetricsWindow) ErrorRatio() float64 {
	if w.Operations == 0 {
		return 0
	}
	return w.Errors / w.Operations
}
