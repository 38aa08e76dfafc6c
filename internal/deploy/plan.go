package deploy

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A Plan is what a deploy would do.
type Plan struct {
	Image    Image    `json:"image"`
	From     Color    `json:"from"`
	To       Color    `json:"to"`
	Replicas int      `json:"replicas"`
	Steps    []string `json:"steps"`
	// Unfinished is the deploy that it would go on with.
	Unfinished string `json:"unfinished,omitempty"`
}

// Plan tells what Deploy would do now. It changes nothing, but may pull the
// image.
func (m *Deployer) Plan(ctx context.Context, ref string) (*Plan, error) {
	j, err := m.State.Current()
	if err != nil {
		return nil, &RefusedError{err}
	}
	p := new(Plan)
	if j == nil {
		if j, err = m.planDeploy(ctx, ref); err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, "preflight: is everything as a deploy needs it?")
	} else {
		if j.Image.Ref != ref || j.RollingBack {
			return nil, m.requireNoDeploy()
		}
		p.Unfinished = j.ID
	}
	p.Image, p.From, p.To, p.Replicas = j.Image, j.From, j.To, j.Replicas
	for _, s := range m.steps(j, newJudge(m.Settings, j)) {
		if !j.completed(s.name) {
			p.Steps = append(p.Steps, s.name+": "+s.text)
		}
	}
	return p, nil
}

// String is the plan for people.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) would go to %s, %d replicas; %s is live.\n", p.Image.Ref, shortID(p.Image.ID), p.To, p.Replicas, p.From)
	if p.Unfinished != "" {
		fmt.Fprintf(&b, "It would go on with %s.\n", p.Unfinished)
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, s)
	}
	return b.String()
}

// shortID is the beginning of an id.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// Details is an entry with its steps, for people.
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
		fmt.Fprintf(&b, "    kept: %s\n", e.DiagnosticsDir)
	}
	return b.String()
}
