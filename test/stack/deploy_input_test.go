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

// assertRefused checks that a command began nothing and said why, in one line.
func assertRefused(t *testing.T, code int, stderr, says string, want int) {
	t.Helper()
	if code != want || !strings.Contains(stderr, says) || strings.Count(strings.TrimSpace(stderr), "\n") != 0 {
		t.Errorf("exit %d, not %d with one line that says %q:\n%s", code, want, says, stderr)
	}
}

// A refused deploy says why in one line, and does not affect connected clients.
func TestDeployRefusesAndSaysWhy(t *testing.T) {
	prepareDeployTest(t)
	image := buildVersion(t, "r1")
	live := sharedStack.routedColor(t)
	run := sharedStack.startClients(t)
	p := sharedStack.startProber(t.Context(), *handshakeRate)
	deployArgs := append([]string{"deploy", image}, ignoredChecks...)

	t.Setenv("DOCKER_HOST", "unix://"+t.TempDir()+"/docker.sock")
	code, _, says := sharedStack.runSwitchyard(t, deployArgs...)
	assertRefused(t, code, says, "docker", 2)
	if err := os.Unsetenv("DOCKER_HOST"); err != nil {
		t.Fatal(err)
	}
	code, _, says = sharedStack.runSwitchyard(t, "deploy", "switchyard:never-built")
	assertRefused(t, code, says, "is not on this host and can't be pulled", 2)
	path, err := buildSwitchyard()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sharedStack.run(path, "deploy", image, "--dir", "/")
	if err == nil || !strings.Contains(out, "name its folder with --dir") {
		t.Errorf("a wrong folder: %v\n%s", err, out)
	}
	out, err = sharedStack.run(path, "deploy", image, "--dir", sharedStack.path(""), "--project", "unknown")
	if err == nil || !strings.Contains(out, "it is not there") {
		t.Errorf("a wrong project: %v\n%s", err, out)
	}

	// Without Prometheus a deploy is refused, unless --without-metrics is given.
	must(t, outputOf(sharedStack.compose("stop", "prometheus")), nil)
	code, _, says = sharedStack.runSwitchyard(t, deployArgs...)
	assertRefused(t, code, says, "--without-metrics", 2)
	code, e := sharedStack.startDeploy(t, image, "--without-metrics", "--watch", "5s", "--watch-moved", "5s").wait(t)
	if code != 0 || e.Color != live.Other() || !strings.Contains(strings.Join(e.Notes, "\n"), "not judged") {
		t.Errorf("exit %d: %+v", code, e)
	}
	out, err = sharedStack.compose("up", "-d", "--no-deps", "--wait", "prometheus")
	must(t, out, err)
	sharedStack.assertLive(t, e.Color, image, run)
	assertNoFailures(t, p)
	assertUnharmed(t, run)
}

// active.yml is half written: clients stay connected, deploy names the remedy, and that
// works.
func TestDeployRefusesAHalfWrittenRoute(t *testing.T) {
	prepareDeployTest(t)
	live := sharedStack.routedColor(t)
	run := sharedStack.startClients(t)
	traefik := filepath.Join(sharedStack.dir, "deploy/traefik")
	text := read(t, filepath.Join(traefik, string(live)+".yml"))
	half := filepath.Join(traefik, "staging/half.yml")
	if err := os.WriteFile(half, []byte(text[:len(text)/2]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, filepath.Join(traefik, "dynamic/active.yml")); err != nil {
		t.Fatal(err)
	}
	code, _, says := sharedStack.runSwitchyard(t, append([]string{"deploy", buildVersion(t, "r2")}, ignoredChecks...)...)
	assertRefused(t, code, says, "switchyard switch", 2)
	if code, out, _ := sharedStack.runSwitchyard(t, "status"); code != 1 || !strings.Contains(out, "live     unknown") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
	sharedStack.mustSucceed(t, nil, "switch", string(live))
	if o, err := sharedStack.overview(); err != nil || !o.Healthy() || o.Route.Live != live {
		t.Errorf("%v\n%s", err, o)
	}
	assertUnharmed(t, run)
}

// A deploy is interrupted by Ctrl-C in its watch: it stops where no client is affected,
// other commands refuse, and the same command continues.
func TestDeployInterrupted(t *testing.T) {
	prepareDeployTest(t)
	image := buildVersion(t, "r3")
	live := sharedStack.routedColor(t)
	run := sharedStack.startClients(t)
	p := sharedStack.startProber(t.Context(), *handshakeRate)
	d := sharedStack.startDeploy(t, image)
	d.waitStep(t, "watch")
	locked, _, says := sharedStack.runSwitchyard(t, "rollback")
	assertRefused(t, locked, says, "is at it since", 4)
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	code, _ := d.wait(t)
	assertRefused(t, code, d.stderr.String(), "`switchyard deploy "+image+"` continues it, `switchyard rollback` rolls it back", 3)
	code, _, says = sharedStack.runSwitchyard(t, "scale", "2")
	assertRefused(t, code, says, "is unfinished", 2)
	e := sharedStack.mustDeploy(t, image)
	sharedStack.assertLive(t, live.Other(), image, run)
	// Another one is interrupted and rolled back.
	d = sharedStack.startDeploy(t, buildVersion(t, "r4"))
	d.waitStep(t, "watch")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _ := d.wait(t); code != 3 {
		t.Errorf("exit %d", code)
	}
	sharedStack.mustSucceed(t, nil, "rollback")
	sharedStack.assertLive(t, e.Color, image, run)
	assertNoFailures(t, p)
	assertUnharmed(t, run)
}

// Both colors are stopped: the refusal says how to begin, and the deploy is then a first
// one. Clients reconnect, and no acked message is lost.
func TestDeployWhenNoColorServes(t *testing.T) {
	prepareDeployTest(t)
	image := buildVersion(t, "r5")
	run := sharedStack.startClients(t)
	pauseFor(t, 2*time.Second)
	out, err := sharedStack.compose("stop", "app_blue", "app_green")
	must(t, out, err)
	code, _, says := sharedStack.runSwitchyard(t, append([]string{"deploy", image}, ignoredChecks...)...)
	assertRefused(t, code, says, "docker compose up -d", 2)
	e := sharedStack.mustDeploy(t, image, "--ignore", "live", "--ignore", "alerts", "--ignore", "metrics", "--ignore", "errors", "--watch", "5s", "--watch-moved", "5s")
	if !strings.Contains(strings.Join(e.Notes, "\n"), "first deploy") {
		t.Errorf("notes: %v", e.Notes)
	}
	sharedStack.assertLive(t, e.Color, image, run)
	report := assertUnharmed(t, run)
	t.Logf("the worst pause: %v", report.WorstPause.WorstPause)
	// After the next deploy, a rollback is possible again.
	next := sharedStack.mustDeploy(t, buildVersion(t, "r6"), "--ignore", "alerts", "--ignore", "errors", "--watch", "5s", "--watch-moved", "5s")
	if next.Old == nil || next.Old.Replicas == 0 || next.Color != e.Color.Other() || next.Outcome != deploy.Deployed {
		t.Errorf("%+v", next)
	}
}
