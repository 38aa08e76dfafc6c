package deploy

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"switchyard/internal/checks"
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

// statuses maps the levels of checks to the words of the JSON output.
var statuses = map[checks.Level]string{checks.OK: statusOK, checks.Warn: statusWarn, checks.Fail: statusFail}

// checkLimit bounds one check, except for the scan, which ScanLimit bounds.
const checkLimit = 2 * time.Minute

// A Preflight checks whether a deploy may begin.
type Preflight struct {
	Stack    *stack.Stack
	Replicas *stack.Replicas
	Settings Settings
	State    StateDir
	// Ignore names checks that may fail.
	Ignore []string
	// ScanCommand is a command that gets an image's reference and fails if the
	// image must not run. It takes precedence over that of the settings.
	ScanCommand string
	// WithoutMetrics lets the checks fail that need Prometheus.
	WithoutMetrics bool
	Clock          Clock
}

// metricsChecks are the checks that need Prometheus.
var metricsChecks = []string{"metrics", "alerting", "alerts", "errors", "backup"}

// checks returns the checks of a deploy of an image, in the order of the report. The image
// is empty if none was named.
func (p *Preflight) checks(image stack.Image) []checks.Check {
	return slices.Concat(
		checks.Select("compose", "traefik", "components", "live", "disk", "memory", "certificate", "dns", "metrics", "alerting", "alerts", "errors"),
		[]checks.Check{{Name: "migrations", Run: func(ctx context.Context, _ *checks.Facts) []checks.Finding { return p.migrations(ctx, image) }}},
		checks.Select("redis", "replica", "backup", "drain", "nofile"),
		[]checks.Check{
			{Name: "window", Run: func(context.Context, *checks.Facts) []checks.Finding { return p.window() }},
			{Name: scanCheck, Run: func(ctx context.Context, f *checks.Facts) []checks.Finding { return p.scan(ctx, image, f) }},
		},
	)
}

// collect reads the facts that the checks share.
func (p *Preflight) collect(ctx context.Context) (*checks.Facts, error) {
	f, err := checks.Collect(ctx, p.Stack, p.Replicas)
	if err != nil {
		return nil, err
	}
	t := p.Settings.Triggers
	f.WithoutPrometheus, f.Now, f.Window, f.ErrorPercent, f.ErrorSamples = p.WithoutMetrics, p.Clock.Now, p.Settings.Window, t.ErrorPercent, t.ErrorSamples
	return f, nil
}

// Run runs all checks, four at a time. Without an image the checks of an image only
// warn. Run itself fails only if it can't run the checks at all.
func (p *Preflight) Run(ctx context.Context, image stack.Image) ([]CheckResult, error) {
	all := p.checks(image)
	for _, name := range p.Ignore {
		if !slices.ContainsFunc(all, func(c checks.Check) bool { return c.Name == name }) {
			return nil, fmt.Errorf("--ignore %s: there is no such check", name)
		}
	}
	facts, err := p.collect(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]CheckResult, len(all))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4) // docker commands are expensive
	for i, c := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = p.runCheck(ctx, c, facts)
		})
	}
	wg.Wait()
	return results, ctx.Err()
}

// limit returns how long a check may take.
func (p *Preflight) limit(c checks.Check) time.Duration {
	if c.Name == scanCheck {
		return p.Settings.ScanLimit
	}
	return checkLimit
}

// runCheck runs a check within its limit and turns its findings into a status.
func (p *Preflight) runCheck(ctx context.Context, c checks.Check, facts *checks.Facts) CheckResult {
	limit := p.limit(c)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no result within %v", limit))
	defer cancel()
	level, text := checks.Summarize(c.Run(ctx, facts))
	if level == checks.Fail && (slices.Contains(p.Ignore, c.Name) || p.WithoutMetrics && slices.Contains(metricsChecks, c.Name)) {
		level, text = checks.Warn, "ignored: "+text
	}
	return CheckResult{c.Name, statuses[level], text}
}

// Allow runs all checks, passes each result to report, and returns an error that
// names the failed ones.
func (p *Preflight) Allow(ctx context.Context, image stack.Image, report func(CheckResult)) error {
	results, err := p.Run(ctx, image)
	if err != nil {
		return err
	}
	var failed, reasons []string
	for _, r := range results {
		report(r)
		if r.Status == statusFail {
			failed, reasons = append(failed, r.Name), append(reasons, r.Name+": "+r.Text)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("preflight: %s; fix it, or take the risk with --ignore %s", strings.Join(reasons, "; "), strings.Join(failed, " --ignore "))
}

// AnyFailed reports whether one of the checks failed.
func AnyFailed(results []CheckResult) bool {
	return slices.ContainsFunc(results, func(c CheckResult) bool { return c.Status == statusFail })
}

// NewPreflight returns the preflight checks of a stack.
func NewPreflight(s *stack.Stack, settings Settings) *Preflight {
	return &Preflight{Stack: s, Replicas: s.Replicas(), Settings: settings, State: StateDir{Dir: s.StateDir()}, Clock: HostClock{}}
}

// migrations checks that the image's pending migrations only add to the schema.
func (p *Preflight) migrations(ctx context.Context, image stack.Image) []checks.Finding {
	if image.Ref == "" {
		return checks.Warnf("no image was named")
	}
	out, err := stack.Images{Stack: p.Stack}.Migrate(ctx, image, checkLimit, "migrate", "-plan")
	if err != nil {
		return checks.Failf("read the migrations of the image: %v", err)
	}
	var pending []struct {
		Name     string `json:"name"`
		Breaking int64  `json:"breaking"`
	}
	if err := json.Unmarshal(out, &pending); err != nil {
		return checks.Failf("read the migrations of the image: %v", err)
	}
	names := make([]string, 0, len(pending))
	for _, m := range pending {
		names = append(names, m.Name)
		if m.Breaking > 0 {
			return checks.Failf("%s is not additive: binaries built for a schema older than %d stop serving, and a rollback is impossible", m.Name, m.Breaking)
		}
	}
	if len(names) == 0 {
		return checks.Okf("none pending")
	}
	return checks.Okf("%s pending; all are additive", strings.Join(names, ", "))
}

// window checks that deploys are not frozen and that a deploy window is open.
func (p *Preflight) window() []checks.Finding {
	freeze := filepath.Join(p.State.Dir, "freeze")
	if text, err := os.ReadFile(freeze); err == nil {
		return checks.Failf("deploys are frozen: %s (remove %s to end it)", cmp.Or(strings.TrimSpace(string(text)), "no reason given"), freeze)
	}
	if len(p.Settings.DeployWindows) == 0 {
		return checks.Warnf("no deploy window is set: a deploy may begin at any time")
	}
	now := p.Clock.Now()
	for _, w := range p.Settings.DeployWindows {
		if w.contains(now) {
			return checks.Okf("in %s", w)
		}
	}
	return checks.Failf("it is %s, and the deploy windows are %v", now.Format("Mon 15:04"), p.Settings.DeployWindows)
}
