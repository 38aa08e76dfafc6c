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
func (m *Machine) Plan(ctx context.Context, ref string) (*Plan, error) {
	j, err := m.State.Current()
	if err != nil {
		return nil, &RefusedError{err}
	}
	p := new(Plan)
	if j == nil {
		if j, err = m.foresee(ctx, ref); err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, "preflight: is everything as a deploy needs it?")
	} else {
		if j.Image.Ref != ref || j.RollingBack {
			return nil, m.idle()
		}
		p.Unfinished = j.ID
	}
	p.Image, p.From, p.To, p.Replicas = j.Image, j.From, j.To, j.Replicas
	for _, s := range m.steps(j, newJudge(m.Settings, j)) {
		if !j.did(s.name) {
			p.Steps = append(p.Steps, s.name+": "+s.text)
		}
	}
	return p, nil
}

// String is the plan for people.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) would go to %s, %d replicas; %s is live.\n", p.Image.Ref, short(p.Image.ID), p.To, p.Replicas, p.From)
	if p.Unfinished != "" {
		fmt.Fprintf(&b, "It would go on with %s.\n", p.Unfinished)
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, s)
	}
	return b.String()
}

// short is the beginning of an id.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// Details is an entry with its steps, for people.
func (e Entry) Details() string {
	var b strings.Builder
	fmt.Fprintln(&b, e)
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "    %-14s %8v  %s\n", s.Step, time.Duration(s.Took*float64(time.Second)).Round(time.Millisecond), s.Note)
	}
	if e.FailedAt != "" {
		fmt.Fprintf(&b, "    it failed at %s\n", e.FailedAt)
	}
	if e.BackAfter > 0 {
		fmt.Fprintf(&b, "    the old color served %v s after the trigger\n", e.BackAfter)
	}
	for _, h := range append(e.Held, e.Notes...) {
		fmt.Fprintf(&b, "    note: %s\n", h)
	}
	if e.Evidence != "" {
		fmt.Fprintf(&b, "    kept: %s\n", e.Evidence)
	}
	return b.String()
}
