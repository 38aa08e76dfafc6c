package deploy

import (
	"context"
	"time"

	"switchyard/internal/stack"
)

// These interfaces are all that a Deployer needs of its environment. Each call is
// idempotent: a command that was killed in a call is followed by another command
// that makes the same call again.

// Containers are the replicas of both colors.
type Containers interface {
	// Inspect returns the replicas of both colors, running or not.
	Inspect(ctx context.Context) (stack.Snapshot, error)
	// Start makes a color match its spec, and returns without waiting for it to be
	// ready. Replicas that already match the spec stay as they are.
	Start(ctx context.Context, spec stack.ColorSpec) error
	// Stop stops and removes a color's replicas.
	Stop(ctx context.Context, c stack.Color) error
	// Remove stops and removes single replicas, which are drained. Those numbered 1
	// to remaining stay.
	Remove(ctx context.Context, c stack.Color, replicas []string, remaining int) error
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
	Resolve(ctx context.Context, ref string) (stack.Image, error)
	// Migrate runs the image's migrations for at most limit, and returns their
	// output.
	Migrate(ctx context.Context, image stack.Image, limit time.Duration, args ...string) ([]byte, error)
	// Prune removes the images that nothing uses.
	Prune(ctx context.Context, images []stack.Image) error
}

// Traffic decides where new connections go.
type Traffic interface {
	// Route reads the route from active.yml.
	Route(ctx context.Context) (stack.Route, error)
	// SetRoute replaces active.yml atomically.
	SetRoute(ctx context.Context, r stack.Route) error
	// Status asks the balancer for the route that it follows. If its routers are
	// broken, Status returns an error and still sets ServersUp.
	Status(ctx context.Context) (stack.BalancerStatus, error)
	// SetServers lists the replicas of a color numbered 1 to n in the balancer.
	SetServers(c stack.Color, n int) error
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
	SaveDiagnostics(ctx context.Context, c stack.Color, folder string) error
	// Notify sends a notification to the receivers of the settings.
	Notify(ctx context.Context, n Notification) error
}

// Clock is the source of time; tests replace it.
type Clock interface {
	Now() time.Time
	// Sleep waits for d, or returns ctx's error when ctx ends first.
	Sleep(ctx context.Context, d time.Duration) error
}

// A Target is where a probe connects: to Replica, or from outside through the
// balancer when Replica is nil. The server that answers must be of the deployment.
type Target struct {
	Replica    *stack.Replica
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
	// MemoryBytes is the largest resident memory of a replica, and Memory its share
	// of the memory limit, from 0 to 1. Deployer.metricsWindow sets the share: 0 when
	// there is no limit.
	MemoryBytes float64 `json:"-"`
	Memory      float64 `json:"memory"`
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

// HostClock implements Clock with the host's clock.
type HostClock struct{}

// Now returns the time.
func (HostClock) Now() time.Time { return time.Now() }

// Sleep waits for d, or returns ctx's error when ctx ends first.
func (HostClock) Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
