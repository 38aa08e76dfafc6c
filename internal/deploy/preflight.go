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

// A Check is one question asked before a deploy, and its answer.
type Check struct {
	Name string `json:"name"`
	// Answer is ok, warn (go on, but know it) or fail.
	Answer string `json:"answer"`
	Text   string `json:"text"`
}

// The answers.
const (
	answerOK   = "ok"
	answerWarn = "warn"
	answerFail = "fail"
)

// checkLimit bounds one check.
const checkLimit = 2 * time.Minute

// A Preflight asks whether a deploy may begin.
type Preflight struct {
	Stack    *Stack
	Compose  *Compose
	Metrics  *Prometheus
	Settings Settings
	State    State
	// Ignore names checks that may fail; Scan is a command that judges an image.
	Ignore []string
	Scan   string
	// Blind goes on without metrics: Prometheus may be away.
	Blind bool
	Clock Clock
}

// byMetrics are the checks that can't be answered without Prometheus.
var byMetrics = []string{"metrics", "alerting", "alerts", "errors", "backup"}

// check is a question; it returns what there is to say, and an error when the
// answer is no.
type check struct {
	name string
	ask  func(ctx context.Context, w *workplace) (string, error)
}

// A warning is an answer that stops nothing.
type warning struct{ error }

func warn(format string, args ...any) error { return &warning{fmt.Errorf(format, args...)} }

// workplace is what several checks look at, looked at once.
type workplace struct {
	containers []container
	sight      Sight
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
		{"migrations", p.migrations}, {"redis", p.redis}, {"replica", p.replica}, {"backup", p.backup},
		{"drain", p.drainBudget}, {"nofile", p.nofile}, {"window", p.window}, {"scan", p.scan},
	}
}

// Run asks everything. Without a ref, what is about an image is left out. Only
// what keeps all questions from being asked is an error.
func (p *Preflight) Run(ctx context.Context, image Image) ([]Check, error) {
	names := map[string]bool{}
	for _, c := range p.checks() {
		names[c.name] = true
	}
	for _, name := range p.Ignore {
		if !names[name] {
			return nil, fmt.Errorf("--ignore %s: there is no such check", name)
		}
	}
	w := &workplace{image: image}
	var err error
	if w.containers, err = p.Compose.containers(ctx); err != nil {
		return nil, err
	}
	if w.sight, err = p.Compose.Look(ctx); err != nil {
		return nil, err
	}
	w.route, w.routeErr = p.Compose.Balancer.Route(ctx)
	all := p.checks()
	answers := make([]Check, len(all))
	var asking sync.WaitGroup
	slots := make(chan struct{}, 4) // docker commands cost
	for i, c := range all {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			answers[i] = p.ask(ctx, c, w)
		})
	}
	asking.Wait()
	return answers, ctx.Err()
}

func (p *Preflight) ask(ctx context.Context, c check, w *workplace) Check {
	ctx, cancel := context.WithTimeoutCause(ctx, checkLimit, fmt.Errorf("no answer within %v", checkLimit))
	defer cancel()
	text, err := c.ask(ctx, w)
	var soft *warning
	switch {
	case err == nil:
		return Check{c.name, answerOK, text}
	case errors.As(err, &soft):
		return Check{c.name, answerWarn, err.Error()}
	case slices.Contains(p.Ignore, c.name), p.Blind && slices.Contains(byMetrics, c.name):
		return Check{c.name, answerWarn, "ignored: " + err.Error()}
	}
	return Check{c.name, answerFail, err.Error()}
}

// May fails with what stands against a deploy of the image, each in a line of
// the report and the remedy in one.
func (p *Preflight) May(ctx context.Context, image Image, report func(Check)) error {
	answers, err := p.Run(ctx, image)
	if err != nil {
		return err
	}
	var failed []string
	for _, a := range answers {
		report(a)
		if a.Answer == answerFail {
			failed = append(failed, a.Name)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("preflight: %s; mend it, or take the risk with --ignore %s", failures(answers), strings.Join(failed, " --ignore "))
}

// failures are what failed, in one line.
func failures(answers []Check) string {
	var parts []string
	for _, a := range answers {
		if a.Answer == answerFail {
			parts = append(parts, a.Name+": "+a.Text)
		}
	}
	return strings.Join(parts, "; ")
}

// Failed tells whether one of the answers is no.
func Failed(answers []Check) bool {
	return slices.ContainsFunc(answers, func(c Check) bool { return c.Answer == answerFail })
}

// Preflight is the stack's.
func (s *Stack) Preflight(c *Compose, settings Settings, state State) *Preflight {
	return &Preflight{Stack: s, Compose: c, Metrics: s.Metrics(c), Settings: settings, State: state, Clock: HostClock{}}
}
