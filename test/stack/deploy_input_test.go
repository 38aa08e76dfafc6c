//go:build stack

package stack

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/deploy"
)

// refused runs a command that is to begin nothing, and to say why in one line.
func refused(t *testing.T, code int, stderr, says string, want int) {
	t.Helper()
	if code != want || !strings.Contains(stderr, says) || strings.Count(strings.TrimSpace(stderr), "\n") != 0 {
		t.Errorf("exit %d, not %d with one line that says %q:\n%s", code, want, says, stderr)
	}
}

// What stands in the way of a deploy is one clear line, and whoever is connected
// does not notice.
func TestDeployRefusesAndSaysWhy(t *testing.T) {
	storyteller(t)
	image := version(t, "r1")
	live := the.route(t)
	run := the.crowd(t)
	p := the.probe(t.Context(), *newcomers)
	deployIt := append([]string{"deploy", image}, tolerated...)

	t.Setenv("DOCKER_HOST", "unix://"+t.TempDir()+"/docker.sock")
	code, _, says := the.switchyard(t, deployIt...)
	refused(t, code, says, "docker", 2)
	if err := os.Unsetenv("DOCKER_HOST"); err != nil {
		t.Fatal(err)
	}
	code, _, says = the.switchyard(t, "deploy", "switchyard:nobody-made-this")
	refused(t, code, says, "is not on this host and can't be pulled", 2)
	path, err := operator()
	if err != nil {
		t.Fatal(err)
	}
	out, err := the.run(path, "deploy", image, "--dir", "/")
	if err == nil || !strings.Contains(out, "name its folder with --dir") {
		t.Errorf("a wrong folder: %v\n%s", err, out)
	}
	out, err = the.run(path, "deploy", image, "--dir", the.path(""), "--project", "nobodys")
	if err == nil || !strings.Contains(out, "postgres is not there") {
		t.Errorf("a wrong project: %v\n%s", err, out)
	}

	// Prometheus is down: it refuses, and goes on blind only when told.
	must(t, must1(the.compose("stop", "prometheus")), nil)
	code, _, says = the.switchyard(t, deployIt...)
	refused(t, code, says, "--without-metrics", 2)
	code, e := the.deploy(t, image, "--without-metrics", "--watch", "5s", "--watch-moved", "5s").wait(t)
	if code != 0 || e.Color != live.Other() || !strings.Contains(strings.Join(e.Notes, "\n"), "not judged") {
		t.Errorf("exit %d: %+v", code, e)
	}
	out, err = the.compose("up", "-d", "--no-deps", "--wait", "prometheus")
	must(t, out, err)
	the.settled(t, e.Color, image, run)
	welcomed(t, p)
	unharmed(t, run)
}

// active.yml is half written: who is there stays, deploy says what mends it, and
// that does.
func TestDeployMeetsAHalfWrittenRoute(t *testing.T) {
	storyteller(t)
	live := the.route(t)
	run := the.crowd(t)
	traefik := filepath.Join(the.dir, "deploy/traefik")
	text := read(t, filepath.Join(traefik, string(live)+".yml"))
	half := filepath.Join(traefik, "staging/half.yml")
	if err := os.WriteFile(half, []byte(text[:len(text)/2]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, filepath.Join(traefik, "dynamic/active.yml")); err != nil {
		t.Fatal(err)
	}
	code, _, says := the.switchyard(t, append([]string{"deploy", version(t, "r2")}, tolerated...)...)
	refused(t, code, says, "switchyard switch", 2)
	if code, out, _ := the.switchyard(t, "status"); code != 1 || !strings.Contains(out, "live     unknown") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
	the.well(t, nil, "switch", string(live))
	if o, err := the.overview(); err != nil || !o.Well() || o.Route.Live != live {
		t.Errorf("%v\n%s", err, o)
	}
	unharmed(t, run)
}

// Ctrl-C in the watch: it stands still where nobody is harmed, other commands say
// so, and the same one goes on.
func TestDeployInterrupted(t *testing.T) {
	storyteller(t)
	image := version(t, "r3")
	live := the.route(t)
	run := the.crowd(t)
	p := the.probe(t.Context(), *newcomers)
	d := the.deploy(t, image)
	d.reached(t, "watch")
	locked, _, says := the.switchyard(t, "rollback")
	refused(t, locked, says, "is at it since", 4)
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	code, _ := d.wait(t)
	refused(t, code, d.errs.String(), "`switchyard deploy "+image+"` goes on, `switchyard rollback` takes it back", 3)
	code, _, says = the.switchyard(t, "scale", "2")
	refused(t, code, says, "is unfinished", 2)
	e := the.deployed(t, image)
	the.settled(t, live.Other(), image, run)
	// And one that is taken back half way.
	d = the.deploy(t, version(t, "r4"))
	d.reached(t, "watch")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _ := d.wait(t); code != 3 {
		t.Errorf("exit %d", code)
	}
	the.well(t, nil, "rollback")
	the.settled(t, e.Color, image, run)
	welcomed(t, p)
	unharmed(t, run)
}

// Both colors are stopped: what is refused says how to begin, and that is a first
// deploy. Clients come back, and nothing that was acked is lost.
func TestDeployWhenNobodyServes(t *testing.T) {
	storyteller(t)
	image := version(t, "r5")
	run := the.crowd(t)
	wait(t, 2*time.Second)
	out, err := the.compose("stop", "app_blue", "app_green")
	must(t, out, err)
	code, _, says := the.switchyard(t, append([]string{"deploy", image}, tolerated...)...)
	refused(t, code, says, "docker compose up -d", 2)
	e := the.deployed(t, image, "--ignore", "live", "--ignore", "alerts", "--ignore", "metrics", "--ignore", "errors", "--watch", "5s", "--watch-moved", "5s")
	if !strings.Contains(strings.Join(e.Notes, "\n"), "first deploy") {
		t.Errorf("notes: %v", e.Notes)
	}
	the.settled(t, e.Color, image, run)
	report := unharmed(t, run)
	t.Logf("the worst pause: %v", report.WorstPause.WorstPause)
	// The way back is there again after the next one.
	next := the.deployed(t, version(t, "r6"), "--ignore", "alerts", "--ignore", "errors", "--watch", "5s", "--watch-moved", "5s")
	if next.Old == nil || next.Old.Replicas == 0 || next.Color != e.Color.Other() || next.Outcome != deploy.Deployed {
		t.Errorf("%+v", next)
	}
}
