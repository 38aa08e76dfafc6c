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

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// StateDir is the folder of files that outlive a command: current.json is the
// unfinished deploy, deploys.jsonl the history with a line for each deploy, lock
// the command that runs, and bad/ the diagnostics of versions that were rolled
// back. All are text for people, too. It must exist.
type StateDir struct {
	Dir string

	onWrite func(op string) // a test kills the command here
}

// A Journal is the memory of an unfinished deploy. It has nothing that can be read
// from the containers or from Traefik.
type Journal struct {
	ID    string      `json:"id"`
	Image stack.Image `json:"image"`
	// From was live when the deploy began, To is the color that gets the image. Old
	// is the spec of From; in a first deploy it has no replicas.
	From     stack.Color     `json:"from"`
	To       stack.Color     `json:"to"`
	Old      stack.ColorSpec `json:"old"`
	Replicas int             `json:"replicas"`
	Started  time.Time       `json:"started"`
	// CompletedSteps are the steps that are done.
	CompletedSteps []CompletedStep `json:"done"`
	// SharePercent is the last share of new connections that passed its watch.
	SharePercent int `json:"canary,omitempty"`
	// Baseline is nil until it is measured, and if there is none.
	Baseline *checks.MetricsWindow `json:"baseline,omitempty"`
	// ClientsBeforeMove is how many clients both colors had before the old one was
	// drained.
	ClientsBeforeMove int `json:"clients,omitempty"`
	// RollingBack is final: it is never reset. The deploy ends rolled back, or failed if
	// there is no earlier version.
	RollingBack bool      `json:"rolling_back,omitempty"`
	Trigger     Trigger   `json:"trigger,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	FailedAt    string    `json:"failed_at,omitempty"` // the step
	TriggeredAt time.Time `json:"triggered,omitzero"`
	// OldServingAt is when the old color served again.
	OldServingAt   time.Time `json:"back,omitzero"`
	DiagnosticsDir string    `json:"evidence,omitempty"`
	// SuppressedTriggers describes triggers that did not count, because the old
	// color showed the same fault.
	SuppressedTriggers []string `json:"held,omitempty"`
	// Notes are for the operator, such as that there is no baseline.
	Notes []string `json:"notes,omitempty"`
}

// A CompletedStep is a step that is done.
type CompletedStep struct {
	Step        string    `json:"step"`
	At          time.Time `json:"at"`
	TookSeconds float64   `json:"took_seconds"`
	Note        string    `json:"note,omitempty"`
}

func (j *Journal) completed(step string) bool {
	return slices.ContainsFunc(j.CompletedSteps, func(s CompletedStep) bool { return s.Step == step })
}

// spec returns the spec of the new color.
func (j *Journal) spec() stack.ColorSpec {
	return stack.ColorSpec{Color: j.To, Image: j.Image, Deployment: j.ID, Replicas: j.Replicas}
}

// firstDeploy reports whether no version ran before: there is none to roll back to.
func (j *Journal) firstDeploy() bool { return j.Old.Replicas == 0 }

// A HistoryEntry is a line of the history.
type HistoryEntry struct {
	ID      string           `json:"id"`
	Outcome Outcome          `json:"outcome"`
	Color   stack.Color      `json:"color"` // live afterwards
	Image   stack.Image      `json:"image"`
	From    stack.Color      `json:"from,omitempty"`
	Old     *stack.ColorSpec `json:"old,omitempty"`
	Started time.Time        `json:"started"`
	Ended   time.Time        `json:"ended"`
	Trigger Trigger          `json:"trigger,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	// FailedAt is the step in which the trigger fired.
	FailedAt string `json:"failed_at,omitempty"`
	// RecoverySeconds is the time from the trigger until the old color served again.
	RecoverySeconds    float64         `json:"back_after_seconds,omitempty"`
	DiagnosticsDir     string          `json:"evidence,omitempty"`
	SuppressedTriggers []string        `json:"held,omitempty"`
	Notes              []string        `json:"notes,omitempty"`
	Steps              []CompletedStep `json:"steps,omitempty"`
}

// sameEntry reports whether the two lines are of one ending of one deploy: a command
// that was killed after it wrote the line writes it again. A later rollback of the
// deploy has another outcome.
func (e HistoryEntry) sameEntry(other HistoryEntry) bool {
	return e.ID == other.ID && e.Outcome == other.Outcome && e.Started.Equal(other.Started)
}

// An Outcome is how a deploy ended.
type Outcome string

// The outcomes.
const (
	Deployed   Outcome = "deployed"
	RolledBack Outcome = "rolled back"
	Failed     Outcome = "failed"   // a first deploy: it serves, and nothing else could
	Switched   Outcome = "switched" // by the operator, without a deploy
	Scaled     Outcome = "scaled"
)

func (s StateDir) path(name string) string { return filepath.Join(s.Dir, name) }

func (s StateDir) runHook(op string) {
	if s.onWrite != nil {
		s.onWrite(op)
	}
}

// Current returns the journal of the unfinished deploy, or nil if there is none.
func (s StateDir) Current() (*Journal, error) {
	text, err := os.ReadFile(s.path("current.json"))
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
		return nil, fmt.Errorf("read %s: %w; remove it if no deploy is unfinished", s.path("current.json"), err)
	}
	return j, nil
}

// saveJournal writes the journal of the unfinished deploy.
func (s StateDir) saveJournal(j *Journal) error {
	s.runHook("save")
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	path := s.path("current.json")
	if err := stack.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	s.runHook("saved")
	return nil
}

// finish appends the deploy to the history and removes its journal. A command that
// is killed between the two writes the same line again: History returns the last.
func (s StateDir) finish(e HistoryEntry) error {
	s.runHook("finish")
	if err := s.appendHistory(e); err != nil {
		return err
	}
	s.runHook("appended")
	err := os.Remove(s.path("current.json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the journal: %w", err)
	}
	s.runHook("finished")
	return stack.SyncFolder(s.Dir)
}

// appendHistory appends a line to the history. If a crash truncated the last line,
// it ends that line first.
func (s StateDir) appendHistory(e HistoryEntry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	f, err := os.OpenFile(s.path("deploys.jsonl"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
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

// History returns the past deploys, the oldest first. It skips lines that can't be
// read, and returns only the last of two lines that are the same entry.
func (s StateDir) History() ([]HistoryEntry, error) {
	text, err := os.ReadFile(s.path("deploys.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var entries []HistoryEntry
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		var e HistoryEntry
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.ID == "" {
			continue
		}
		if n := len(entries); n > 0 && entries[n-1].sameEntry(e) {
			entries = entries[:n-1]
		}
		entries = append(entries, e)
	}
	return entries, nil
}
