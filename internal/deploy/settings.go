package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Settings are the parameters of a deploy. They are read from deploy.yml beside
// the compose file, and flags take precedence.
type Settings struct {
	// Replicas is how many replicas the new color gets; 0 means as many as the live
	// color has.
	Replicas int `yaml:"replicas"`
	// SharePercents are the percentages of new connections that go to the new color
	// before the switch, one after the other.
	SharePercents []int `yaml:"canary"`

	ReadyLimit   time.Duration `yaml:"ready_limit"`
	ConfirmLimit time.Duration `yaml:"confirm_limit"`
	DrainLimit   time.Duration `yaml:"drain_limit"`
	MigrateLimit time.Duration `yaml:"migrate_limit"`

	// Baseline is the span over which the live color is measured.
	Baseline time.Duration `yaml:"baseline"`
	// Verify is how long clients test the service after the switch; 0 skips it.
	Verify time.Duration `yaml:"verify"`
	// ShareWatch is how long each of SharePercents is watched.
	ShareWatch time.Duration `yaml:"canary_watch"`
	// Watch is how long the new color is watched before the old one is drained, and
	// WatchMoved how long after all clients were moved.
	Watch      time.Duration `yaml:"watch"`
	WatchMoved time.Duration `yaml:"watch_moved"`
	// ProbeEvery is the period of health checks, Window that of metrics.
	ProbeEvery time.Duration `yaml:"probe_every"`
	Window     time.Duration `yaml:"window"`
	// KeepImages is how many images of past deploys stay on the host.
	KeepImages int `yaml:"keep"`

	Triggers      Triggers             `yaml:"triggers"`
	Notifications NotificationSettings `yaml:"notices"`
	// DeployWindows are the spans in which a deploy may begin; none means always.
	DeployWindows []TimeWindow `yaml:"windows"`
	// ScanCommand is a command that gets an image's reference and fails if the
	// image must not run.
	ScanCommand string        `yaml:"scan"`
	ScanLimit   time.Duration `yaml:"scan_limit"`
}

// NotificationSettings name the receivers of notifications. Paths are relative to
// the file of the settings.
type NotificationSettings struct {
	Webhook string `yaml:"webhook"`
	// SecretFile has the secret that signs notifications.
	SecretFile string `yaml:"secret_file"`
	// Grafana is the address of a Grafana, GrafanaTokenFile the file with a service
	// account's token.
	Grafana          string `yaml:"grafana"`
	GrafanaTokenFile string `yaml:"grafana_token_file"`
}

// Triggers are the thresholds beyond which a deploy is rolled back.
type Triggers struct {
	// Disabled names triggers that never fire.
	Disabled []Trigger `yaml:"off"`
	// HealthFailures is how many failed checks of a replica in a row are tolerated.
	HealthFailures int `yaml:"health_failures"`
	// Restarts is how many crashes of a replica are tolerated.
	Restarts int `yaml:"restarts"`
	// ErrorPercent is the tolerated percentage of operations that fail through a
	// fault of the service. It is not judged for fewer than ErrorSamples operations.
	ErrorPercent float64 `yaml:"error_percent"`
	ErrorSamples int     `yaml:"error_samples"`
	// A p95 is slow over SlowTimes the baseline's p95 and over ResponseFloor. Two
	// slow windows in a row with at least SlowSamples publishes each fire.
	SlowTimes     float64       `yaml:"slow_times"`
	ResponseFloor time.Duration `yaml:"response_floor"`
	SlowSamples   int           `yaml:"slow_samples"`
	// MemoryPercent is the tolerated resident memory in percent of a replica's limit.
	MemoryPercent float64 `yaml:"memory_percent"`
	// ReturnPercent is the percentage of the clients that must be connected again
	// within ReturnGrace of the move.
	ReturnPercent float64       `yaml:"return_percent"`
	ReturnGrace   time.Duration `yaml:"return_grace"`
}

// A Trigger is a reason for an automatic rollback.
type Trigger string

// The triggers.
const (
	TriggerHealth         Trigger = "health"   // failed health checks in a row
	TriggerCrash          Trigger = "crash"    // a replica crashed
	TriggerErrors         Trigger = "errors"   // too many server errors
	TriggerSlow           Trigger = "slow"     // p95 over the baseline
	TriggerMemory         Trigger = "memory"   // resident memory near the limit
	TriggerSessions       Trigger = "sessions" // clients that did not reconnect
	TriggerDeliveryCanary Trigger = "canary"   // the delivery canary is stale
	TriggerCheck          Trigger = "check"    // the check from outside failed
	TriggerStart          Trigger = "start"    // the new color never served, or a step failed otherwise
)

// optionalTriggers are the triggers that Disabled may name.
var optionalTriggers = []Trigger{TriggerHealth, TriggerCrash, TriggerErrors, TriggerSlow, TriggerMemory, TriggerSessions, TriggerDeliveryCanary}

// DefaultSettings returns the settings of a deploy without deploy.yml.
func DefaultSettings() Settings {
	return Settings{
		ReadyLimit: 2 * time.Minute, ConfirmLimit: 10 * time.Second, DrainLimit: 10 * time.Minute, MigrateLimit: 10 * time.Minute,
		Baseline: 5 * time.Minute, Verify: 15 * time.Second, ShareWatch: 2 * time.Minute,
		Watch: 5 * time.Minute, WatchMoved: 5 * time.Minute, ProbeEvery: 2 * time.Second, Window: 30 * time.Second, KeepImages: 3, ScanLimit: 10 * time.Minute,
		Triggers: Triggers{
			HealthFailures: 3, Restarts: 0, ErrorPercent: 5, ErrorSamples: 20,
			SlowTimes: 2, ResponseFloor: 50 * time.Millisecond, SlowSamples: 100,
			MemoryPercent: 90, ReturnPercent: 90, ReturnGrace: 30 * time.Second,
		},
	}
}

// ReadSettings reads a file of settings on top of the defaults. A missing file is
// no error; an unknown name is.
func ReadSettings(path string) (Settings, error) {
	s := DefaultSettings()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the settings: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return s, fmt.Errorf("%s: %s", path, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if err := s.Validate(); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Validate returns an error that names the first setting that is out of bounds.
func (s Settings) Validate() error {
	for _, d := range []struct {
		name          string
		value, lo, hi time.Duration
	}{
		{"ready_limit", s.ReadyLimit, time.Second, time.Hour},
		{"confirm_limit", s.ConfirmLimit, time.Second, 10 * time.Minute},
		{"drain_limit", s.DrainLimit, time.Second, 2 * time.Hour},
		{"migrate_limit", s.MigrateLimit, time.Second, 24 * time.Hour},
		{"baseline", s.Baseline, 10 * time.Second, 24 * time.Hour},
		{"verify", s.Verify, 0, time.Hour},
		{"canary_watch", s.ShareWatch, 0, 24 * time.Hour},
		{"watch", s.Watch, 0, 24 * time.Hour},
		{"watch_moved", s.WatchMoved, 0, 24 * time.Hour},
		{"probe_every", s.ProbeEvery, 100 * time.Millisecond, time.Minute},
		{"window", s.Window, 5 * time.Second, 10 * time.Minute},
		{"scan_limit", s.ScanLimit, time.Second, time.Hour},
		{"triggers.response_floor", s.Triggers.ResponseFloor, 0, time.Minute},
		{"triggers.return_grace", s.Triggers.ReturnGrace, 0, 10 * time.Minute},
	} {
		if d.value < d.lo || d.value > d.hi {
			return fmt.Errorf("%s must be %v to %v, not %v", d.name, d.lo, d.hi, d.value)
		}
	}
	for _, n := range []struct {
		name          string
		value, lo, hi float64
	}{
		{"replicas", float64(s.Replicas), 0, 100},
		{"keep", float64(s.KeepImages), 2, 100},
		{"triggers.health_failures", float64(s.Triggers.HealthFailures), 1, 1000},
		{"triggers.restarts", float64(s.Triggers.Restarts), 0, 1000},
		{"triggers.error_percent", s.Triggers.ErrorPercent, 0, 100},
		{"triggers.error_samples", float64(s.Triggers.ErrorSamples), 1, 1e9},
		{"triggers.slow_times", s.Triggers.SlowTimes, 1, 1000},
		{"triggers.slow_samples", float64(s.Triggers.SlowSamples), 1, 1e9},
		{"triggers.memory_percent", s.Triggers.MemoryPercent, 1, 100},
		{"triggers.return_percent", s.Triggers.ReturnPercent, 0, 100},
	} {
		if !(n.value >= n.lo && n.value <= n.hi) { // true for NaN, too
			return fmt.Errorf("%s must be %v to %v, not %v", n.name, n.lo, n.hi, n.value)
		}
	}
	return s.validateLists()
}

// validateLists checks the settings that are lists.
func (s Settings) validateLists() error {
	last := 0
	for _, percent := range s.SharePercents {
		if percent <= last || percent > 99 {
			return fmt.Errorf("canary must be percentages of 1 to 99 that rise, not %v", s.SharePercents)
		}
		last = percent
	}
	for _, w := range s.DeployWindows {
		if err := w.validate(); err != nil {
			return err
		}
	}
	for _, t := range s.Triggers.Disabled {
		if !slices.Contains(optionalTriggers, t) {
			return fmt.Errorf("triggers.off may name %v, not %q", optionalTriggers, t)
		}
	}
	return nil
}
