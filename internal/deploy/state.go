package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// State is the folder of files that outlive a command: current.json is the
// deploy under way, deploys.jsonl the history, a line each, lock who is at it,
// and bad/ what was kept of versions that were rolled back. People may read
// them all.
type State struct {
	Dir string

	touch func(op string) // a test ends the command here
}

// A Journal is what a deploy under way has to remember. What can be seen in the
// world is not in it.
type Journal struct {
	ID    string `json:"id"`
	Image Image  `json:"image"`
	// From was live when it began, To is where the image goes. Old is what From
	// runs; without replicas it is a first deploy.
	From     Color     `json:"from"`
	To       Color     `json:"to"`
	Old      Launch    `json:"old"`
	Replicas int       `json:"replicas"`
	Started  time.Time `json:"started"`
	// Done are the steps that came to their end.
	Done []Stage `json:"done"`
	// Canary is the percentage that was watched to its end.
	Canary int `json:"canary,omitempty"`
	// Baseline is nil until it is measured, and when there is none.
	Baseline *Window `json:"baseline,omitempty"`
	// Clients were connected to both colors when the old one was drained.
	Clients int `json:"clients,omitempty"`
	// RollingBack is final: from here there is only one way.
	RollingBack bool      `json:"rolling_back,omitempty"`
	Trigger     Trigger   `json:"trigger,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	FailedAt    string    `json:"failed_at,omitempty"` // the step
	Triggered   time.Time `json:"triggered,omitzero"`
	// Back is when the old color served again.
	Back     time.Time `json:"back,omitzero"`
	Evidence string    `json:"evidence,omitempty"`
	// Held are triggers that did not count, since the old color showed them too.
	Held []string `json:"held,omitempty"`
	// Notes are what a person should know of it, such as a missing baseline.
	Notes []string `json:"notes,omitempty"`
}

// A Stage is a step that was done.
type Stage struct {
	Step string    `json:"step"`
	At   time.Time `json:"at"`
	Took float64   `json:"took_seconds"`
	Note string    `json:"note,omitempty"`
}

func (j *Journal) did(step string) bool {
	return slices.ContainsFunc(j.Done, func(s Stage) bool { return s.Step == step })
}

// launch is how the new color is to run.
func (j *Journal) launch() Launch {
	return Launch{Color: j.To, Image: j.Image, Deployment: j.ID, Replicas: j.Replicas}
}

// first tells that nothing ran before, to which one could go back.
func (j *Journal) first() bool { return j.Old.Replicas == 0 }

// An Entry is a line of the history.
type Entry struct {
	ID      string    `json:"id"`
	Outcome Outcome   `json:"outcome"`
	Color   Color     `json:"color"` // live afterwards
	Image   Image     `json:"image"`
	From    Color     `json:"from,omitempty"`
	Old     *Launch   `json:"old,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	Trigger Trigger   `json:"trigger,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	// FailedAt is the step at which the trigger came.
	FailedAt string `json:"failed_at,omitempty"`
	// BackAfter is the time from the trigger to the old color serving.
	BackAfter float64  `json:"back_after_seconds,omitempty"`
	Evidence  string   `json:"evidence,omitempty"`
	Held      []string `json:"held,omitempty"`
	Notes     []string `json:"notes,omitempty"`
	Steps     []Stage  `json:"steps,omitempty"`
}

// written tells whether a command that was killed wrote the same line before. A
// deploy that is taken back later keeps its own.
func (e Entry) written(again Entry) bool {
	return e.ID == again.ID && e.Outcome == again.Outcome && e.Started.Equal(again.Started)
}

// An Outcome is how a deploy ended.
type Outcome string

// The outcomes.
const (
	Deployed   Outcome = "deployed"
	RolledBack Outcome = "rolled back"
	Switched   Outcome = "switched" // by hand, nothing started
	Scaled     Outcome = "scaled"
)

func (s State) file(name string) string { return filepath.Join(s.Dir, name) }

func (s State) touched(op string) {
	if s.touch != nil {
		s.touch(op)
	}
}

// Current returns the deploy under way, nil when there is none.
func (s State) Current() (*Journal, error) {
	text, err := os.ReadFile(s.file("current.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	j := new(Journal)
	if err == nil {
		err = json.Unmarshal(text, j)
	}
	if err == nil && (j.ID == "" || j.To == "" || j.From != j.To.Other()) {
		err = errors.New("it names no deploy")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; remove it if no deploy is under way", s.file("current.json"), err)
	}
	return j, nil
}

// save writes the deploy under way.
func (s State) save(j *Journal) error {
	s.touched("save")
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	path := s.file("current.json")
	if err := writeFile(path, path+".new", append(text, '\n')); err != nil {
		return err
	}
	s.touched("saved")
	return nil
}

// finish writes the history and ends the deploy under way. A command killed
// between the two writes the same line again: History takes the last.
func (s State) finish(e Entry) error {
	s.touched("finish")
	if err := s.append(e); err != nil {
		return err
	}
	s.touched("appended")
	err := os.Remove(s.file("current.json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end the deploy: %w", err)
	}
	s.touched("finished")
	return syncFolder(s.Dir)
}

// append adds a line to the history. A line that was cut short by a crash is
// ended first.
func (s State) append(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	f, err := os.OpenFile(s.file("deploys.jsonl"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...)
		}
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	return nil
}

// History returns what was done, the oldest first. Lines that can't be read are
// left out; one that was written twice counts by the last.
func (s State) History() ([]Entry, error) {
	text, err := os.ReadFile(s.file("deploys.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var entries []Entry
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.ID == "" {
			continue
		}
		if n := len(entries); n > 0 && entries[n-1].written(e) {
			entries = entries[:n-1]
		}
		entries = append(entries, e)
	}
	return entries, nil
}
