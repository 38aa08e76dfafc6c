// Package checks answers whether a stack is healthy. It has one list of checks and one
// set of bounds (bounds.go); `switchyard preflight`, `check` and `status` select from
// the list, and the alert rules of Prometheus have the same bounds. A check reads the
// stack and changes nothing. A Prober tests it as a client does.
//
// What only a deploy needs to know (the image's migrations, the image scan, the deploy
// window) is in internal/deploy.
package checks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/backup"
	"switchyard/internal/stack"
)

// A Level says how bad a finding is.
type Level int

// The levels.
const (
	OK   Level = iota
	Warn       // out of the ordinary, without harm to users yet
	Fail
)

// A Finding is one thing that a check found out.
type Finding struct {
	Level Level
	// Subject is the part of the stack that the finding is about. It is empty if that
	// is what the check's name says.
	Subject, Text string
}

func (f Finding) String() string { return strings.TrimSpace(f.Subject + " " + f.Text) }

// Okf returns one finding, without a subject.
func Okf(format string, args ...any) []Finding { return found(OK, "", format, args...) }

// Warnf is as Okf.
func Warnf(format string, args ...any) []Finding { return found(Warn, "", format, args...) }

// Failf is as Okf.
func Failf(format string, args ...any) []Finding { return found(Fail, "", format, args...) }

func found(level Level, subject, format string, args ...any) []Finding {
	return []Finding{{level, subject, fmt.Sprintf(format, args...)}}
}

// Failed returns the finding of a check that could not be run.
func Failed(err error) []Finding { return Failf("%s", strings.ReplaceAll(err.Error(), "\n", "; ")) }

// Summarize returns the worst level of the findings, and the findings of that level in
// one line.
func Summarize(all []Finding) (worst Level, text string) {
	var parts []string
	for _, f := range all {
		worst = max(worst, f.Level)
	}
	for _, f := range all {
		if f.Level == worst && !slices.Contains(parts, f.String()) {
			parts = append(parts, f.String())
		}
	}
	return worst, strings.Join(parts, ", ")
}

// Facts are what checks read. A command sets what its checks need.
type Facts struct {
	Stack   *stack.Stack
	Traefik *stack.Traefik
	Metrics *HostMetrics
	// WithoutPrometheus says that Prometheus need not run.
	WithoutPrometheus bool
	// Prometheus is nil when it was not found; PrometheusErr says why.
	Prometheus    *stack.Prometheus
	PrometheusErr error
	// Backups is nil when the folder of the backups is unknown.
	Backups *backup.Repository
	// Now returns the time; nil means that of the host.
	Now func() time.Time

	// Containers are the stack's containers, unless ContainersErr says why they could
	// not be listed.
	Containers    []stack.Container
	ContainersErr error
	// Config is the compose file, unless ConfigErr says why it can't be read.
	Config    *stack.Config
	ConfigErr error
	Snapshot  stack.Snapshot
	Route     stack.Route
	RouteErr  error

	// Lookback is the span that the check "night" covers.
	Lookback time.Duration
	// MaxBackupAge bounds the age of the newest backup, MaxProofAge that of the last
	// verification and MaxWALAge that of the newest WAL segment.
	MaxBackupAge, MaxProofAge, MaxWALAge time.Duration
	// Window is the span over which replicas are looked for in Prometheus. At least
	// ErrorSamples operations are judged, of which ErrorPercent may fail.
	Window       time.Duration
	ErrorPercent float64
	ErrorSamples int
}

// Collect reads the compose file, the containers, replicas and the route of a stack.
func Collect(ctx context.Context, s *stack.Stack, replicas *stack.Replicas) (*Facts, error) {
	f := &Facts{Stack: s, Traefik: replicas.Traefik, Prometheus: s.Prometheus(), Metrics: NewHostMetrics(s)}
	var err error
	if f.Containers, err = s.Containers(ctx); err != nil && !errors.Is(err, stack.ErrNoContainers) {
		return nil, err
	}
	if f.Snapshot, err = replicas.Inspect(ctx); err != nil {
		return nil, err
	}
	f.Config, f.ConfigErr = s.Config(ctx)
	f.Route, f.RouteErr = replicas.Traefik.Route(ctx)
	return f, nil
}

func (f *Facts) now() time.Time {
	if f.Now == nil {
		return time.Now()
	}
	return f.Now()
}

// A Check is one question about a stack.
type Check struct {
	Name string
	// Run returns the findings, none if another check reports the same. It may be called
	// concurrently.
	Run func(ctx context.Context, f *Facts) []Finding
}

// all are the checks of a stack.
var all = []Check{
	// What the command reads itself, at this moment:
	{"compose", withConfig(composeFile)}, {"traefik", traefikFiles}, {"components", withConfig(components)}, {"live", liveColor},
	{"disk", disk}, {"memory", memoryForSecondColor}, {"certificate", certificate}, {"dns", dns},
	{"metrics", scrapedReplicas}, {"alerting", alerting}, {"alerts", alerts}, {"errors", recentErrors},
	{"redis", redis}, {"replica", standby}, {"backup", verifiedBackup}, {"drain", withConfig(drainBudget)}, {"nofile", openFiles},
	{"containers", containers}, {"backups", backups},
	// What Prometheus measures:
	{"targets", targets}, {"system", system}, {"night", night},
}

// withConfig fails a check that reads the compose file if that can't be read.
func withConfig(run func(*Facts, *stack.Config) []Finding) func(context.Context, *Facts) []Finding {
	return func(_ context.Context, f *Facts) []Finding {
		if f.ConfigErr != nil {
			return Failed(f.ConfigErr)
		}
		return run(f, f.Config)
	}
}

// Select returns the checks with these names, in that order.
func Select(names ...string) []Check {
	selected := make([]Check, len(names))
	for i, name := range names {
		selected[i] = all[slices.IndexFunc(all, func(c Check) bool { return c.Name == name })]
	}
	return selected
}
