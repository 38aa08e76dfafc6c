package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A CheckResult is one question asked before a deploy, and its answer.
type CheckResult struct {
	Name string `json:"name"`
	// Status is ok, warn (go on, but know it) or fail.
	Status string `json:"answer"`
	Text   string `json:"text"`
}

// The answers.
const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// checkLimit bounds one check.
const checkLimit = 2 * time.Minute

// A Preflight asks whether a deploy may begin.
type Preflight struct {
	Stack    *Stack
	Compose  *Compose
	Metrics  *Prometheus
	Settings Settings
	State    StateDir
	// Ignore names checks that may fail; Scan is a command that judges an image.
	Ignore      []string
	ScanCommand string
	// WithoutMetrics goes on without metrics: Prometheus may be away.
	WithoutMetrics bool
	Clock          Clock
}

// metricsChecks are the checks that can't be answered without Prometheus.
var metricsChecks = []string{"metrics", "alerting", "alerts", "errors", "backup"}

// check is a question; it returns what there is to say, and an error when the
// answer is no.
type check struct {
	name string
	run  func(ctx context.Context, w *checkInput) (string, error)
}

// A warning is an answer that stops nothing.
type warning struct{ error }

func warningf(format string, args ...any) error { return &warning{fmt.Errorf(format, args...)} }

// checkInput is what several checks look at, looked at once.
type checkInput struct {
	containers []container
	snapshot   Snapshot
	route      Route
	routeErr   error
	image      Image // empty: no image was named
}

// checks are asked at the same time and answered in this order.
func (p *Preflight) checks() []check {
	return []check{
		{"compose", p.composeFile}, {"traefik", p.traefikFiles}, {"components", p.components}, {"live", p.liveColor},
		{"disk", p.disk}, {"memory", p.memory}, {"certificate", p.certificate}, {"dns", p.dns},
		{"metrics", p.metrics}, {"alerting", p.alerting}, {"alerts", p.alerts}, {"errors", p.recentErrors},
		{"migrations", p.migrations}, {"redis", p.redis}, {"replica", p.standby}, {"backup", p.backup},
		{"drain", p.drainBudget}, {"nofile", p.nofile}, {"window", p.window}, {"scan", p.scan},
	}
}

// Run asks everything. Without a ref, what is about an image is left out. Only
// what keeps all questions from being asked is an error.
func (p *Preflight) Run(ctx context.Context, image Image) ([]CheckResult, error) {
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
	if in.containers, err = p.Compose.containers(ctx); err != nil {
		return nil, err
	}
	if in.snapshot, err = p.Compose.Inspect(ctx); err != nil {
		return nil, err
	}
	in.route, in.routeErr = p.Compose.Balancer.Route(ctx)
	all := p.checks()
	results := make([]CheckResult, len(all))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4) // docker commands cost
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

func (p *Preflight) runCheck(ctx context.Context, c check, in *checkInput) CheckResult {
	ctx, cancel := context.WithTimeoutCause(ctx, checkLimit, fmt.Errorf("no answer within %v", checkLimit))
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

// Allow fails with what stands against a deploy of the image, each in a line of
// the report and the remedy in one.
func (p *Preflight) Allow(ctx context.Context, image Image, report func(CheckResult)) error {
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
	return fmt.Errorf("preflight: %s; mend it, or take the risk with --ignore %s", describeFailures(results), strings.Join(failed, " --ignore "))
}

// describeFailures are what failed, in one line.
func describeFailures(results []CheckResult) string {
	var parts []string
	for _, a := range results {
		if a.Status == statusFail {
			parts = append(parts, a.Name+": "+a.Text)
		}
	}
	return strings.Join(parts, "; ")
}

// AnyFailed tells whether one of the answers is no.
func AnyFailed(results []CheckResult) bool {
	return slices.ContainsFunc(results, func(c CheckResult) bool { return c.Status == statusFail })
}

// Preflight is the stack's.
func (s *Stack) Preflight(c *Compose, settings Settings, state StateDir) *Preflight {
	return &Preflight{Stack: s, Compose: c, Metrics: s.Metrics(c), Settings: settings, State: state, Clock: HostClock{}}
}
