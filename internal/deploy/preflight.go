package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"switchyard/internal/stack"
)

// A CheckResult is the result of one preflight check.
type CheckResult struct {
	Name string `json:"name"`
	// Status is ok, warn (does not stop a deploy) or fail.
	Status string `json:"answer"`
	Text   string `json:"text"`
}

// The statuses of a check.
const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// checkLimit bounds one check.
const checkLimit = 2 * time.Minute

// A Preflight checks whether a deploy may begin.
type Preflight struct {
	Stack    *stack.Stack
	Replicas *stack.Replicas
	Metrics  *HostMetrics
	Settings Settings
	State    StateDir
	// Ignore names checks that may fail.
	Ignore []string
	// ScanCommand is a command that gets the image's reference and fails if the
	// image must not run. It takes precedence over that of the settings.
	ScanCommand string
	// WithoutMetrics lets the checks fail that need Prometheus.
	WithoutMetrics bool
	Clock          Clock
}

// metricsChecks are the checks that need Prometheus.
var metricsChecks = []string{"metrics", "alerting", "alerts", "errors", "backup"}

// A check returns a text for the report, and an error if it failed. A warning is
// an error that stops nothing.
type check struct {
	name string
	run  func(ctx context.Context, in *checkInput) (string, error)
}

// A warning is the error of a check that does not stop a deploy.
type warning struct{ error }

func warningf(format string, args ...any) error { return &warning{fmt.Errorf(format, args...)} }

// checkInput is the state that several checks read; Run collects it once.
type checkInput struct {
	containers []stack.Container
	snapshot   stack.Snapshot
	route      stack.Route
	routeErr   error
	image      stack.Image // empty if no image was named
}

// checks returns all checks, in the order of the report.
func (p *Preflight) checks() []check {
	return []check{
		{"compose", p.composeFile}, {"traefik", p.traefikFiles}, {"components", p.components}, {"live", p.liveColor},
		{"disk", p.disk}, {"memory", p.memory}, {"certificate", p.certificate}, {"dns", p.dns},
		{"metrics", p.metrics}, {"alerting", p.alerting}, {"alerts", p.alerts}, {"errors", p.recentErrors},
		{"migrations", p.migrations}, {"redis", p.redis}, {"replica", p.standby}, {"backup", p.backup},
		{"drain", p.drainBudget}, {"nofile", p.nofile}, {"window", p.window}, {"scan", p.scan},
	}
}

// Run runs all checks, four at a time. Without an image the checks of an image only
// warn. Run itself fails only if it can't run the checks at all.
func (p *Preflight) Run(ctx context.Context, image stack.Image) ([]CheckResult, error) {
	names := map[string]bool{}
	for _, c := range p.checks() {
		names[c.name] = true
	}
	for _, name := range p.Ignore {
		if !names[name] {
			return nil, fmt.Errorf("--ignore %s: there is no such check", name)
		}
	}
	in := &checkInput{image: image}
	var err error
	if in.containers, err = p.Stack.Containers(ctx); err != nil && !errors.Is(err, stack.ErrNoContainers) {
		return nil, err
	}
	if in.snapshot, err = p.Replicas.Inspect(ctx); err != nil {
		return nil, err
	}
	in.route, in.routeErr = p.Replicas.Traefik.Route(ctx)
	all := p.checks()
	results := make([]CheckResult, len(all))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4) // docker commands are expensive
	for i, c := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = p.runCheck(ctx, c, in)
		})
	}
	wg.Wait()
	return results, ctx.Err()
}

// runCheck runs a check within checkLimit and turns its error into a status.
func (p *Preflight) runCheck(ctx context.Context, c check, in *checkInput) CheckResult {
	ctx, cancel := context.WithTimeoutCause(ctx, checkLimit, fmt.Errorf("no result within %v", checkLimit))
	defer cancel()
	text, err := c.run(ctx, in)
	var warned *warning
	switch {
	case err == nil:
		return CheckResult{c.name, statusOK, text}
	case errors.As(err, &warned):
		return CheckResult{c.name, statusWarn, err.Error()}
	case slices.Contains(p.Ignore, c.name), p.WithoutMetrics && slices.Contains(metricsChecks, c.name):
		return CheckResult{c.name, statusWarn, "ignored: " + err.Error()}
	}
	return CheckResult{c.name, statusFail, err.Error()}
}

// Allow runs all checks, passes each result to report, and returns an error that
// names the failed ones.
func (p *Preflight) Allow(ctx context.Context, image stack.Image, report func(CheckResult)) error {
	results, err := p.Run(ctx, image)
	if err != nil {
		return err
	}
	var failed []string
	for _, a := range results {
		report(a)
		if a.Status == statusFail {
			failed = append(failed, a.Name)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("preflight: %s; fix it, or take the risk with --ignore %s", describeFailures(results), strings.Join(failed, " --ignore "))
}

// describeFailures joins the texts of the failed checks in one line.
func describeFailures(results []CheckResult) string {
	var parts []string
	for _, a := range results {
		if a.Status == statusFail {
			parts = append(parts, a.Name+": "+a.Text)
		}
	}
	return strings.Join(parts, "; ")
}

// AnyFailed reports whether one of the checks failed.
func AnyFailed(results []CheckResult) bool {
	return slices.ContainsFunc(results, func(c CheckResult) bool { return c.Status == statusFail })
}

// NewPreflight returns the preflight checks of a stack.
func NewPreflight(s *stack.Stack, settings Settings) *Preflight {
	return &Preflight{Stack: s, Replicas: s.Replicas(), Metrics: NewHostMetrics(s), Settings: settings, State: StateDir{Dir: s.StateDir()}, Clock: HostClock{}}
}
