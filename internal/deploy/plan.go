package deploy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A Plan is the list of steps of a deploy.
type Plan struct {
	Image    stack.Image `json:"image"`
	From     stack.Color `json:"from"`
	To       stack.Color `json:"to"`
	Replicas int         `json:"replicas"`
	Steps    []string    `json:"steps"`
	// Unfinished is the id of the deploy that it would continue.
	Unfinished string `json:"unfinished,omitempty"`
}

// Plan returns the steps that Deploy would run now. It changes nothing, but may
// pull the image.
func (d *Deployer) Plan(ctx context.Context, ref string) (*Plan, error) {
	j, err := d.State.Current()
	if err != nil {
		return nil, &RefusedError{err}
	}
	p := new(Plan)
	if j == nil {
		if j, err = d.planDeploy(ctx, ref); err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, "preflight: check that a deploy can begin")
	} else {
		if j.Image.Ref != ref || j.RollingBack {
			return nil, d.requireNoDeploy()
		}
		p.Unfinished = j.ID
	}
	p.Image, p.From, p.To, p.Replicas = j.Image, j.From, j.To, j.Replicas
	for _, s := range d.steps(j, newJudge(d.Settings, j)) {
		if !j.completed(s.name) {
			p.Steps = append(p.Steps, s.name+": "+s.text)
		}
	}
	return p, nil
}

// String formats the plan for people.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) would go to %s, %d replicas; %s is live.\n", p.Image.Ref, shortID(p.Image.ID), p.To, p.Replicas, p.From)
	if p.Unfinished != "" {
		fmt.Fprintf(&b, "It would continue %s.\n", p.Unfinished)
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, s)
	}
	return b.String()
}

// shortID returns the first 12 digits of an image's id.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// Details formats an entry with its steps for people.
func (e HistoryEntry) Details() string {
	var b strings.Builder
	fmt.Fprintln(&b, e)
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "    %-14s %8v  %s\n", s.Step, time.Duration(s.TookSeconds*float64(time.Second)).Round(time.Millisecond), s.Note)
	}
	if e.FailedAt != "" {
		fmt.Fprintf(&b, "    it failed at %s\n", e.FailedAt)
	}
	if e.RecoverySeconds > 0 {
		fmt.Fprintf(&b, "    the old color served %v s after the trigger\n", e.RecoverySeconds)
	}
	for _, h := range append(e.SuppressedTriggers, e.Notes...) {
		fmt.Fprintf(&b, "    note: %s\n", h)
	}
	if e.DiagnosticsDir != "" {
		fmt.Fprintf(&b, "    diagnostics: %s\n", e.DiagnosticsDir)
	}
	return b.String()
}
