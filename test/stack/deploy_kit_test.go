//go:build stack

package stack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/deploy"
	"switchyard/internal/load"
	host "switchyard/internal/stack"
)

// The tests of `switchyard deploy` take long: only `make e2e-deploy` runs them. These
// are their short values; the Makefile has those of a release.
var (
	deployTests   = flag.Bool("deploy", false, "run the tests of switchyard deploy")
	deployCount   = flag.Int("deploy.n", 2, "deploys in a row")
	killCount     = flag.Int("deploy.kills", 2, "how often the command is killed")
	clientCount   = flag.Int("deploy.clients", 100, "clients connected meanwhile")
	addressCount  = flag.Int("deploy.addresses", 40, "addresses of those clients")
	messageRate   = flag.Float64("deploy.rate", 30, "messages a second of all clients together")
	handshakeRate = flag.Int("deploy.newcomers", 20, "handshakes a second of new connections")
	watchDuration = flag.Duration("deploy.watch", 20*time.Second, "each of the two watches")
	drainWindow   = flag.Duration("deploy.drain", 10*time.Second, "DRAIN_WINDOW")
	crashAfter    = flag.Duration("deploy.crash", 45*time.Second, "from the start of the version that crashes to its crash")
	seed          = flag.Uint64("deploy.seed", 1, "of the moments at which the command is killed")
)

// ignoredChecks are flags for the checks that this machine cannot pass: its domain does
// not resolve, and no backup was verified.
var ignoredChecks = []string{"--ignore", "dns", "--ignore", "backup"}

// prepareDeployTest skips the test unless -deploy is given. It waits until the stack has
// one live, healthy color and no deploy under way, and sets short watches.
func prepareDeployTest(t *testing.T) {
	t.Helper()
	if !*deployTests {
		t.Skip("a test of deploys: make e2e-deploy")
	}
	text := fmt.Sprintf(`watch: %v
watch_moved: %v
canary_watch: %v
verify: 5s
baseline: 1m
window: 15s
ready_limit: 3m
keep: 100
`, *watchDuration, *watchDuration, *watchDuration)
	if err := os.WriteFile(sharedStack.path("deploy.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 2*time.Minute, "a stack that serves", func() error {
		o, err := sharedStack.overview()
		if err == nil && o.Current != nil {
			err = fmt.Errorf("%s is under way", o.Current.ID)
		}
		if err == nil && !o.Healthy() {
			err = fmt.Errorf("it is not healthy:\n%s", o)
		}
		return err
	})
}

// overview returns the state that `switchyard status` prints.
func (s *stack) overview() (*deploy.Overview, error) {
	d, err := host.Open(s.path(""), host.DefaultFile, s.name)
	if err == nil {
		err = d.LoadEnv()
	}
	if err != nil {
		return nil, err
	}
	return deploy.ReadOverview(context.Background(), d)
}

func (s *stack) history(t *testing.T) []deploy.HistoryEntry {
	t.Helper()
	entries, err := deploy.StateDir{Dir: s.path("state")}.History()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func (s *stack) lastDeploy(t *testing.T) deploy.HistoryEntry {
	t.Helper()
	entries := s.history(t)
	if len(entries) == 0 {
		t.Fatal("the history is empty")
	}
	return entries[len(entries)-1]
}

// startClients starts clients that publish, from many addresses, and whose history is
// judged. Four share a room: a delivery through Traefik costs this machine as much as a
// publish.
func (s *stack) startClients(t *testing.T) *load.Run {
	t.Helper()
	return s.startRun(t, load.Plan{
		Clients: *clientCount, Rooms: max(1, *clientCount/4), Rate: *messageRate, RampUp: 5 * time.Second, Settle: time.Minute,
		Prefix: fmt.Sprintf("talk-%d", time.Now().UnixNano()%1e9), MaxEvents: 20_000_000,
	}, *addressCount)
}

// assertUnharmed ends a run, and checks that no message was lost, duplicated or
// reordered and no client rejected.
func assertUnharmed(t *testing.T, run *load.Run) *load.Report {
	t.Helper()
	run.Stop()
	report := run.Report()
	t.Logf("%s", report)
	if report.Verdict != load.Clean || report.Gaps > 0 || len(report.Run.Rejected) > 0 {
		t.Errorf("verdict %s, %d gaps, rejected %v", report.Verdict, report.Gaps, report.Run.Rejected)
	}
	return report
}

// assertNoFailures ends a prober, and fails the test for each handshake that failed.
func assertNoFailures(t *testing.T, p *prober) []probeResult {
	t.Helper()
	results := p.stop()
	failed := failures(results)
	for _, v := range failed[:min(5, len(failed))] {
		t.Errorf("a handshake begun %s failed after %v: %v", p.start.Add(v.began).Format("15:04:05.000"), v.took.Round(time.Millisecond), v.err)
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d handshakes failed", len(failed), len(results))
	}
	return results
}

// A deployCommand is a command that was started with --json.
type deployCommand struct {
	cmd      *exec.Cmd
	done     chan struct{}
	code     int
	stderr   strings.Builder
	mu       sync.Mutex // Protects following.
	events   []deploy.Event
	endEvent endEvent
}

// endEvent is the last line of a command's output.
type endEvent struct {
	Kind, Error string
	Exit        int
	Deploy      deploy.HistoryEntry
}

// startCommand starts switchyard with --json.
func (s *stack) startCommand(t *testing.T, args ...string) *deployCommand {
	t.Helper()
	path, err := buildSwitchyard()
	if err != nil {
		t.Fatal(err)
	}
	d := &deployCommand{done: make(chan struct{})}
	d.cmd = exec.Command(path, append(args, "--json", "--dir", s.path(""), "--project", s.name)...)
	d.cmd.Stderr = &d.stderr
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	go func() {
		defer close(d.done)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			d.onLine(t, lines.Bytes(), began)
		}
		err := d.cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Error(err)
		}
		d.code = d.cmd.ProcessState.ExitCode()
	}()
	return d
}

func (d *deployCommand) onLine(t *testing.T, line []byte, began time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var e deploy.Event
	if err := json.Unmarshal(line, &e); err != nil {
		return // the last line of a killed command may be cut
	}
	if e.Kind == "end" {
		if err := json.Unmarshal(line, &d.endEvent); err != nil {
			t.Error(err)
		}
		return
	}
	d.events = append(d.events, e)
	t.Logf("%6.1f s  %-5s %s: %s", e.At.Sub(began).Seconds(), e.Kind, e.Step, e.Text)
}

// waitStep waits until a step began.
func (d *deployCommand) waitStep(t *testing.T, step string) {
	t.Helper()
	eventuallyWithin(t, 10*time.Minute, "the step "+step, func() error {
		select {
		case <-d.done:
			t.Fatalf("it ended with %d before %s: %s", d.code, step, d.stderr.String())
		default:
		}
		if d.stepStarted(step).IsZero() {
			return errors.New("not yet")
		}
		return nil
	})
}

// stepStarted returns when a step began, the zero time if it did not.
func (d *deployCommand) stepStarted(step string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Step == step && e.Kind == "begin" {
			return e.At
		}
	}
	return time.Time{}
}

// wait waits for the end of the command.
func (d *deployCommand) wait(t *testing.T) (code int, e deploy.HistoryEntry) {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(20 * time.Minute):
		t.Fatal("the command does not end")
	}
	t.Logf("exit %d %s%s", d.code, d.stderr.String(), d.endEvent.Deploy)
	return d.code, d.endEvent.Deploy
}

// startDeploy starts a deploy of an image.
func (s *stack) startDeploy(t *testing.T, image string, args ...string) *deployCommand {
	t.Helper()
	return s.startCommand(t, append(append([]string{"deploy", image}, ignoredChecks...), args...)...)
}

// mustDeploy deploys an image, and fails the test unless it is live then.
func (s *stack) mustDeploy(t *testing.T, image string, args ...string) deploy.HistoryEntry {
	t.Helper()
	code, e := s.startDeploy(t, image, args...).wait(t)
	if code != 0 || e.Outcome != deploy.Deployed || e.Image.Ref != image {
		t.Fatalf("%s: exit %d, %+v", image, code, e)
	}
	return e
}

// assertLive checks that a color serves an image alone and has all clients: the route
// file, Traefik, the containers and a new connection agree.
func (s *stack) assertLive(t *testing.T, color host.Color, image string, run *load.Run) {
	t.Helper()
	o, err := s.overview()
	if err != nil {
		t.Fatal(err)
	}
	if !o.Healthy() || o.Route == nil || *o.Route != (host.Route{Live: color}) || o.Current != nil {
		t.Errorf("%s is not live, healthy and alone:\n%s", color, o)
	}
	connected := 0
	for _, r := range o.Replicas[color] {
		connected += r.Clients
		if !strings.HasPrefix(r.Image.Ref, image) {
			t.Errorf("%s runs %s, not %s", r.Name, r.Image.Ref, image)
		}
	}
	for _, r := range o.Replicas[color.Other()] {
		if r.Running && (r.Drain != "drained" || r.Clients > 0) {
			t.Errorf("%s, of the color that is not live, is not drained: %+v", r.Name, r.Health)
		}
	}
	if run != nil && connected < *clientCount {
		t.Errorf("%d clients on %s, of %d", connected, color, *clientCount)
	}
	if gotColor, _, err := s.probeOnce(t.Context(), testAddress(0)); err != nil || gotColor != string(color) {
		t.Errorf("a new connection came to %q, %v", gotColor, err)
	}
}

// routeRenamedAt returns when active.yml was renamed into place.
func (s *stack) routeRenamedAt(t *testing.T) time.Time {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(filepath.Join(s.dir, "deploy/traefik/dynamic/active.yml"), &stat); err != nil {
		t.Fatal(err)
	}
	return time.Unix(stat.Ctim.Unix())
}

// kill ends the command by SIGKILL, and waits until it is gone.
func (d *deployCommand) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-d.done
}
