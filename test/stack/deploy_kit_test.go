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
)

// The stories of `switchyard deploy` are long, and run only when asked for: make
// e2e-deploy. The counts are short ones; what a release wants is in the Makefile.
var (
	stories   = flag.Bool("deploy", false, "run the stories of switchyard deploy")
	deploys   = flag.Int("deploy.n", 2, "deploys in a row")
	kills     = flag.Int("deploy.kills", 2, "how often the command is killed")
	clients   = flag.Int("deploy.clients", 100, "who is connected meanwhile")
	addresses = flag.Int("deploy.addresses", 40, "from so many addresses")
	rate      = flag.Float64("deploy.rate", 30, "messages a second of all together")
	newcomers = flag.Int("deploy.newcomers", 20, "handshakes a second beside them")
	watch     = flag.Duration("deploy.watch", 20*time.Second, "each of the two watches")
	drain     = flag.Duration("deploy.drain", 10*time.Second, "DRAIN_WINDOW")
	crash     = flag.Duration("deploy.crash", 45*time.Second, "after which the version that crashes does")
	seed      = flag.Uint64("deploy.seed", 1, "of the moments at which the command is killed")
)

// tolerated are the checks that this machine can't pass: the name leads nowhere,
// no backup was proved.
var tolerated = []string{"--ignore", "dns", "--ignore", "backup"}

// storyteller skips what was not asked for, and has the stack as the stories need
// it: one color live and well, nothing under way, short watches.
func storyteller(t *testing.T) {
	t.Helper()
	if !*stories {
		t.Skip("a story of deploys: make e2e-deploy")
	}
	text := fmt.Sprintf(`watch: %v
watch_moved: %v
canary_watch: %v
verify: 5s
baseline: 1m
window: 15s
ready_limit: 3m
keep: 100
`, *watch, *watch, *watch)
	if err := os.WriteFile(the.path("deploy.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "a stack that serves", func() error {
		o, err := the.overview()
		if err == nil && o.Current != nil {
			err = fmt.Errorf("%s is under way", o.Current.ID)
		}
		if err == nil && !o.Well() {
			err = fmt.Errorf("it is not well:\n%s", o)
		}
		return err
	})
}

// overview is what status tells.
func (s *stack) overview() (*deploy.Overview, error) {
	d, err := deploy.OpenStack(s.path(""), deploy.DefaultFile, s.name)
	if err != nil {
		return nil, err
	}
	return d.Overview(context.Background(), d.Metrics(d.Compose(nil)))
}

func (s *stack) history(t *testing.T) []deploy.Entry {
	t.Helper()
	entries, err := deploy.State{Dir: s.path("state")}.History()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func (s *stack) last(t *testing.T) deploy.Entry {
	t.Helper()
	entries := s.history(t)
	if len(entries) == 0 {
		t.Fatal("the history is empty")
	}
	return entries[len(entries)-1]
}

// crowd are clients who talk, from many addresses, and are judged. Four share a room:
// it all runs on one machine, and a delivery through Traefik costs it as much as a
// publish.
func (s *stack) crowd(t *testing.T) *load.Run {
	t.Helper()
	return s.run500(t, load.Plan{
		Clients: *clients, Rooms: max(1, *clients/4), Rate: *rate, RampUp: 5 * time.Second, Settle: time.Minute,
		Prefix: fmt.Sprintf("talk-%d", time.Now().UnixNano()%1e9), MaxEvents: 20_000_000,
	}, *addresses)
}

// unharmed judges them: nothing lost, doubled or reordered, and nobody sent away.
func unharmed(t *testing.T, run *load.Run) *load.Report {
	t.Helper()
	run.Stop()
	report := run.Report()
	t.Logf("%s", report)
	if report.Verdict != load.Clean || report.Gaps > 0 || len(report.Run.TurnedAway) > 0 {
		t.Errorf("verdict %s, %d gaps, turned away %v", report.Verdict, report.Gaps, report.Run.TurnedAway)
	}
	return report
}

// welcomed ends a prober, and fails for each handshake that did.
func welcomed(t *testing.T, p *prober) []visit {
	t.Helper()
	visits := p.stop()
	failed := failures(visits)
	for _, v := range failed[:min(5, len(failed))] {
		t.Errorf("a handshake begun %s failed after %v: %v", p.start.Add(v.began).Format("15:04:05.000"), v.took.Round(time.Millisecond), v.err)
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d handshakes failed", len(failed), len(visits))
	}
	return visits
}

// A deployer is a command under way.
type deployer struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	code   int
	errs   strings.Builder
	mu     sync.Mutex // Protects following.
	events []deploy.Event
	end    end
}

// end is the last line that a program reads.
type end struct {
	Kind, Error string
	Exit        int
	Deploy      deploy.Entry
}

// begin starts switchyard with --json.
func (s *stack) begin(t *testing.T, args ...string) *deployer {
	t.Helper()
	path, err := operator()
	if err != nil {
		t.Fatal(err)
	}
	d := &deployer{ended: make(chan struct{})}
	d.cmd = exec.Command(path, append(args, "--json", "--dir", s.path(""), "--project", s.name)...)
	d.cmd.Stderr = &d.errs
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	go func() {
		defer close(d.ended)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			d.hear(t, lines.Bytes(), began)
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

func (d *deployer) hear(t *testing.T, line []byte, began time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var e deploy.Event
	if err := json.Unmarshal(line, &e); err != nil {
		return // of one that was killed
	}
	if e.Kind == "end" {
		if err := json.Unmarshal(line, &d.end); err != nil {
			t.Error(err)
		}
		return
	}
	d.events = append(d.events, e)
	t.Logf("%6.1f s  %-5s %s: %s", e.At.Sub(began).Seconds(), e.Kind, e.Step, e.Text)
}

// reached waits until a step began.
func (d *deployer) reached(t *testing.T, step string) {
	t.Helper()
	eventually(t, 10*time.Minute, "the step "+step, func() error {
		select {
		case <-d.ended:
			t.Fatalf("it ended with %d before %s: %s", d.code, step, d.errs.String())
		default:
		}
		if d.begun(step).IsZero() {
			return errors.New("not yet")
		}
		return nil
	})
}

// begun is when a step began, the zero time if it did not.
func (d *deployer) begun(step string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Step == step && e.Kind == "begin" {
			return e.At
		}
	}
	return time.Time{}
}

// wait waits for its end.
func (d *deployer) wait(t *testing.T) (code int, e deploy.Entry) {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(20 * time.Minute):
		t.Fatal("it does not end")
	}
	t.Logf("exit %d %s%s", d.code, d.errs.String(), d.end.Deploy)
	return d.code, d.end.Deploy
}

// deploy brings a version into service as the stories do it.
func (s *stack) deploy(t *testing.T, image string, args ...string) *deployer {
	t.Helper()
	return s.begin(t, append(append([]string{"deploy", image}, tolerated...), args...)...)
}

// deployed deploys, and fails unless the image is live then.
func (s *stack) deployed(t *testing.T, image string, args ...string) deploy.Entry {
	t.Helper()
	code, e := s.deploy(t, image, args...).wait(t)
	if code != 0 || e.Outcome != deploy.Deployed || e.Image.Ref != image {
		t.Fatalf("%s: exit %d, %+v", image, code, e)
	}
	return e
}

// settled fails unless a color serves an image alone, with everybody on it: the
// file, Traefik, the containers and a newcomer agree.
func (s *stack) settled(t *testing.T, color deploy.Color, image string, run *load.Run) {
	t.Helper()
	o, err := s.overview()
	if err != nil {
		t.Fatal(err)
	}
	if !o.Well() || o.Route == nil || *o.Route != (deploy.Route{Live: color}) || o.Current != nil {
		t.Errorf("not %s as it should be:\n%s", color, o)
	}
	on := 0
	for _, r := range o.Replicas[color] {
		on += r.Clients
		if !strings.HasPrefix(r.Image.Ref, image) {
			t.Errorf("%s runs %s, not %s", r.Name, r.Image.Ref, image)
		}
	}
	for _, r := range o.Replicas[color.Other()] {
		if r.Running && (r.Drain != "drained" || r.Clients > 0) {
			t.Errorf("%s of the color that is not live: %+v", r.Name, r.Health)
		}
	}
	if run != nil && on < *clients {
		t.Errorf("%d clients on %s, of %d", on, color, *clients)
	}
	if met, _, err := s.visit(t.Context(), address(0)); err != nil || met != string(color) {
		t.Errorf("a newcomer met %q, %v", met, err)
	}
}

// renamed is when active.yml was renamed in.
func (s *stack) renamed(t *testing.T) time.Time {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(filepath.Join(s.dir, "deploy/traefik/dynamic/active.yml"), &stat); err != nil {
		t.Fatal(err)
	}
	return time.Unix(stat.Ctim.Unix())
}

// stop ends the command as Ctrl-C does, kill as nothing else does.
func (d *deployer) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-d.ended
}
