//go:build stack

package stack

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/deploy"
	"switchyard/internal/load"
	host "switchyard/internal/stack"
)

// A new version is deployed while clients publish and others connect.
func TestDeployMovesEveryClient(t *testing.T) {
	prepareDeployTest(t)
	image := buildVersion(t, "b1")
	before := sharedStack.routedColor(t)
	run := sharedStack.startClients(t)
	p := sharedStack.startProber(t.Context(), *handshakeRate)
	began := time.Now()
	e := sharedStack.mustDeploy(t, image)
	t.Logf("deployed in %v:\n%s", time.Since(began).Round(time.Second), e.Details())
	to := before.Other()
	sharedStack.assertLive(t, to, image, run)
	results := assertNoFailures(t, p)
	assertUnharmed(t, run)
	t.Logf("%d handshakes, the slowest took %v", len(results), slowest(results))
	if e.Color != to || e.From != before || e.Trigger != "" || len(e.Steps) < 10 {
		t.Errorf("%+v", e)
	}
	if last := sharedStack.lastDeploy(t); last.ID != e.ID || last.Outcome != deploy.Deployed {
		t.Errorf("the history ends with %+v", last)
	}
	if _, err := os.Stat(sharedStack.path("state/current.json")); !os.IsNotExist(err) {
		t.Errorf("the journal of the deploy is left: %v", err)
	}
	// .env has the new image: docker compose up changes nothing.
	env := read(t, sharedStack.path(".env"))
	c := strings.ToUpper(string(to))
	if !strings.Contains(env, "IMAGE_"+c+"="+image) || !strings.Contains(env, "DEPLOYMENT_"+c+"="+e.ID+"\n") {
		t.Errorf("%s\n%s", e.ID, env)
	}
	if out := outputOf(sharedStack.compose("up", "-d", "--dry-run")); strings.Contains(out, "app_"+string(to)+"-1 Recreate") {
		t.Errorf("a plain docker compose up would change what is live:\n%s", out)
	}
	if code, _, says := sharedStack.runSwitchyard(t, append([]string{"deploy", image}, ignoredChecks...)...); code != 0 || !strings.Contains(says, "live already") {
		t.Errorf("exit %d for a version that is live: %s", code, says)
	}
}

// routedColor returns the live color by active.yml.
func (s *stack) routedColor(t *testing.T) host.Color {
	t.Helper()
	r, err := (&host.Traefik{Dir: s.dir + "/deploy/traefik"}).Route(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.Live
}

// The commands beside deploy work on the stack after one.
func TestDeployRelatedCommands(t *testing.T) {
	prepareDeployTest(t)
	image := buildVersion(t, "b2")
	old := sharedStack.routedColor(t)
	was, err := sharedStack.overview()
	if err != nil {
		t.Fatal(err)
	}
	oldImage := was.Replicas[old][0].Image.Ref
	run := sharedStack.startClients(t)
	p := sharedStack.startProber(t.Context(), *handshakeRate)
	sharedStack.mustSucceed(t, []string{"1\\. preflight", "would go to " + string(old.Other())}, append([]string{"deploy", image, "--dry-run"}, ignoredChecks...)...)
	e := sharedStack.mustDeploy(t, image, "--canary", "20%", "--watch", "5s", "--watch-moved", "5s")
	live := e.Color
	sharedStack.mustSucceed(t, []string{"live     " + string(live), "drained", "version b2"}, "status")
	sharedStack.mustSucceed(t, []string{e.ID[:4], "canary 20%", "watch moved"}, "history", "--last", "1")
	sharedStack.mustSucceed(t, []string{"ok    wss://", "ok    " + sharedStack.container("app_"+string(live), 1)}, "smoke")
	out := sharedStack.mustSucceed(t, []string{"ok +compose", "ok +traefik", "ok +components", "ok +live", "ok +metrics", "ok +migrations", "ok +replica", "warn +dns"},
		append([]string{"preflight", image}, ignoredChecks...)...)
	if strings.Contains("\n"+out, "\nfail ") {
		t.Errorf("preflight:\n%s", out)
	}
	// The idle color is undrained, gets the traffic, and is drained.
	sharedStack.mustSucceed(t, nil, "undrain", string(old))
	sharedStack.mustSucceed(t, []string{"switched"}, "switch", string(old))
	if gotColor, _, err := sharedStack.probeOnce(t.Context(), testAddress(0)); err != nil || gotColor != string(old) {
		t.Errorf("after the switch a new connection came to %q, %v", gotColor, err)
	}
	sharedStack.mustSucceed(t, nil, "switch", string(live))
	sharedStack.mustSucceed(t, nil, "drain", string(old))
	sharedStack.assertLive(t, live, image, run)
	replica := sharedStack.container("app_"+string(live), 2)
	sharedStack.mustSucceed(t, nil, "drain", replica)
	if code, out, _ := sharedStack.runSwitchyard(t, "status"); code != 1 || !strings.Contains(out, "serving, 2 of 3 replicas ready") || !strings.Contains(out, replica+": drained") {
		t.Errorf("with a replica drained status exits with %d:\n%s", code, out)
	}
	sharedStack.mustSucceed(t, nil, "undrain", replica)
	for _, n := range []int{4, 2, 3} {
		sharedStack.mustSucceed(t, []string{"scaled"}, "scale", fmt.Sprint(n))
		if up := sharedStack.serversUp(t, string(live)); up != n {
			t.Errorf("scaled to %d, and %d servers are up", n, up)
		}
	}
	sharedStack.mustSucceed(t, []string{"rolled back, " + string(old) + " is live .*: asked for"}, "rollback")
	sharedStack.assertLive(t, old, oldImage, run)
	assertNoFailures(t, p)
	assertUnharmed(t, run)
}

// Many deploys in a row work, as `make e2e-deploy LONG=1` runs them before a release.
func TestDeploysInARow(t *testing.T) {
	prepareDeployTest(t)
	images := []string{buildVersion(t, "even"), buildVersion(t, "odd")}
	run := sharedStack.startClients(t)
	pauseFor(t, 10*time.Second)
	var first []time.Duration
	handshakes := 0
	for n := range *deployCount {
		run.BeginPhase()
		p := sharedStack.startProber(t.Context(), *handshakeRate)
		d := sharedStack.startDeploy(t, images[n%2])
		d.waitStep(t, "check") // active.yml has been renamed
		at := sharedStack.routeRenamedAt(t).Sub(p.start)
		code, e := d.wait(t)
		if code != 0 || e.Outcome != deploy.Deployed {
			t.Fatalf("exit %d, %+v", code, e)
		}
		results := assertNoFailures(t, p)
		handshakes += len(results)
		first = append(first, firstHandshakeOn(results, string(e.Color), at))
		sharedStack.assertLive(t, e.Color, images[n%2], run)
		run.BeginPhase()
		pauseFor(t, 5*time.Second) // a quiet phase to compare with
	}
	report := assertUnharmed(t, run)
	slices.Sort(first)
	t.Logf("%d deploys, %d handshakes meanwhile; from the rename to the first new connection on the new color: median %v, worst %v",
		len(first), handshakes, first[len(first)/2], first[len(first)-1])
	// Even phases are quiet, and each odd one has a deploy.
	t.Logf("each client's longest pause in a deploy: %s; in quiet phases: %s", longestPauses(report, 1), longestPauses(report, 0))
}

// firstHandshakeOn returns the time from the rename to the begin of the first handshake
// that came to the new color.
func firstHandshakeOn(results []probeResult, color string, at time.Duration) time.Duration {
	least := time.Hour
	for _, v := range results {
		if v.err == nil && v.color == color && v.began >= at {
			least = min(least, v.began-at)
		}
	}
	return least
}

// longestPauses describes the longest pauses of all subscribers, in the odd phases (1) or
// the even ones (0).
func longestPauses(report *load.Report, odd int) string {
	var all []time.Duration
	for _, s := range report.Subscribers {
		for phase, longest := range s.Pauses {
			if phase%2 == odd {
				all = append(all, time.Duration(longest))
			}
		}
	}
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	at := func(q float64) time.Duration {
		return all[min(len(all)-1, int(math.Ceil(q*float64(len(all))))-1)].Round(time.Millisecond)
	}
	return fmt.Sprintf("p50 %v, p99 %v, worst %v (%d)", at(.5), at(.99), all[len(all)-1].Round(time.Millisecond), len(all))
}
