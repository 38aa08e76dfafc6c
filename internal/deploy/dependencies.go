package deploy

import (
	"context"
	"time"

	"switchyard/internal/checks"
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
	Smoke(ctx context.Context, t checks.Target) error
	// Verify runs many clients for d, checks what they received, and returns the
	// p95 from a publish to its ack.
	Verify(ctx context.Context, d time.Duration) (time.Duration, error)
	// LoadPage loads the page and its script from outside.
	LoadPage(ctx context.Context) error
}

// Metrics returns what the replicas of a deployment measured in the last span.
type Metrics interface {
	Window(ctx context.Context, deployment string, span time.Duration) (checks.MetricsWindow, error)
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
