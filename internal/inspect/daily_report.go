package inspect

import (
	"cmp"
	"context"
	"time"

	"switchyard/internal/checks"
)

// A DailyReport checks everything that an operator checks in the morning. Its
// fields are set before the first call and not changed afterwards.
type DailyReport struct {
	Stack Stack
	// Facts are what the checks of the report read, except the containers.
	checks.Facts
}

// statuses are the statuses of the levels.
var statuses = map[checks.Level]Status{checks.OK: StatusOK, checks.Warn: StatusWarn, checks.Fail: StatusFail}

// Run runs all checks. It never fails: a check that can't be run is a line
// with StatusFail.
func (r *DailyReport) Run(ctx context.Context) *DailyResult {
	p := &DailyResult{At: time.Now().UTC()}
	facts := r.Facts
	facts.Containers, facts.ContainersErr = r.Stack.Containers(ctx)
	since := "Since " + p.At.Add(-r.Lookback).Format("2006-01-02 15:04") + " UTC"
	p.Sections = []Section{
		section(ctx, &facts, "Services", "containers", "targets", "alerts"), section(ctx, &facts, "System", "system"), section(ctx, &facts, since, "night"),
		r.errors(ctx), section(ctx, &facts, "Backups", "backups"),
	}
	return p
}

// section returns the findings of checks.
func section(ctx context.Context, facts *checks.Facts, title string, names ...string) Section {
	s := Section{Title: title}
	for _, c := range checks.Select(names...) {
		for _, f := range c.Run(ctx, facts) {
			s.add(statuses[f.Level], cmp.Or(f.Subject, c.Name), "%s", f.Text)
		}
	}
	return s
}

func (r *DailyReport) errors(ctx context.Context) Section {
	s := Section{Title: "Errors"}
	e, err := ReadErrors(ctx, r.Stack, nil, time.Now().Add(-r.Lookback))
	if err != nil {
		s.fail("log", err)
		return s
	}
	const maxShown = 5
	for _, k := range e.Kinds[:min(len(e.Kinds), maxShown)] {
		status := StatusWarn
		if k.Level == "ERROR" {
			status = StatusFail
		}
		s.add(status, k.Level, "%d times: %s %s", k.Count, k.Message, truncate(k.Example, 100))
	}
	if more := len(e.Kinds) - maxShown; more > 0 {
		s.add(StatusWarn, "more", "%d other kinds: run switchyard errors", more)
	}
	if len(e.Kinds) == 0 {
		s.add(StatusOK, "log", "no errors or warnings from nodes")
	}
	return s
}
