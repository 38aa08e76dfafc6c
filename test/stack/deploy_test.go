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
)

// A new version comes into service under clients who talk and others who come in.
func TestDeployMovesEverybody(t *testing.T) {
	storyteller(t)
	image := version(t, "b1")
	before := the.route(t)
	run := the.crowd(t)
	p := the.probe(t.Context(), *newcomers)
	began := time.Now()
	e := the.deployed(t, image)
	t.Logf("deployed in %v:\n%s", time.Since(began).Round(time.Second), e.Details())
	to := before.Other()
	the.settled(t, to, image, run)
	visits := welcomed(t, p)
	unharmed(t, run)
	t.Logf("%d handshakes, the slowest took %v", len(visits), slowest(visits))
	if e.Color != to || e.From != before || e.Trigger != "" || len(e.Steps) < 10 {
		t.Errorf("%+v", e)
	}
	if last := the.last(t); last.ID != e.ID || last.Outcome != deploy.Deployed {
		t.Errorf("the history ends with %+v", last)
	}
	if _, err := os.Stat(the.path("state/current.json")); !os.IsNotExist(err) {
		t.Errorf("the journal is there still: %v", err)
	}
	// .env keeps it so: nothing is to be done for Compose.
	env := read(t, the.path(".env"))
	c := strings.ToUpper(string(to))
	if !strings.Contains(env, "IMAGE_"+c+"="+image) || !strings.Contains(env, "DEPLOYMENT_"+c+"="+e.ID+"\n") {
		t.Errorf("%s\n%s", e.ID, env)
	}
	if out := must1(the.compose("up", "-d", "--dry-run")); strings.Contains(out, "app_"+string(to)+"-1 Recreate") {
		t.Errorf("a plain docker compose up would change what is live:\n%s", out)
	}
	if code, _, says := the.switchyard(t, append([]string{"deploy", image}, tolerated...)...); code != 0 || !strings.Contains(says, "live already") {
		t.Errorf("exit %d for what is live: %s", code, says)
	}
}

// route is what active.yml says.
func (s *stack) route(t *testing.T) deploy.Color {
	t.Helper()
	r, err := deploy.ParseRoute([]byte(read(t, s.dir+"/deploy/traefik/dynamic/active.yml")))
	if err != nil {
		t.Fatal(err)
	}
	return r.Live
}

// The other commands, each on the stack after a deploy.
func TestDeploysSisters(t *testing.T) {
	storyteller(t)
	image := version(t, "b2")
	old := the.route(t)
	was, err := the.overview()
	if err != nil {
		t.Fatal(err)
	}
	oldImage := was.Replicas[old][0].Image.Ref
	run := the.crowd(t)
	p := the.probe(t.Context(), *newcomers)
	the.well(t, []string{"1\\. preflight", "would go to " + string(old.Other())}, append([]string{"deploy", image, "--dry-run"}, tolerated...)...)
	e := the.deployed(t, image, "--canary", "20%", "--watch", "5s", "--watch-moved", "5s")
	live := e.Color
	the.well(t, []string{"live     " + string(live), "drained", "version b2"}, "status")
	the.well(t, []string{e.ID[:4], "canary 20%", "watch moved"}, "history", "--last", "1")
	the.well(t, []string{"ok    wss://", "ok    " + the.container("app_"+string(live), 1)}, "smoke")
	out := the.well(t, []string{"ok +compose", "ok +traefik", "ok +components", "ok +live", "ok +metrics", "ok +migrations", "ok +replica", "warn +dns"},
		append([]string{"preflight", image}, tolerated...)...)
	if strings.Contains("\n"+out, "\nfail ") {
		t.Errorf("preflight:\n%s", out)
	}
	// Who is idle is let in again, gets the traffic, and lets go of everybody.
	the.well(t, nil, "undrain", string(old))
	the.well(t, []string{"switched"}, "switch", string(old))
	if met, _, err := the.visit(t.Context(), address(0)); err != nil || met != string(old) {
		t.Errorf("after the switch a newcomer met %q, %v", met, err)
	}
	the.well(t, nil, "switch", string(live))
	the.well(t, nil, "drain", string(old))
	the.settled(t, live, image, run)
	one := the.container("app_"+string(live), 2)
	the.well(t, nil, "drain", one)
	if code, out, _ := the.switchyard(t, "status"); code != 1 || !strings.Contains(out, "serving, 2 of 3 replicas ready") || !strings.Contains(out, one+": drained") {
		t.Errorf("with a replica drained status exits with %d:\n%s", code, out)
	}
	the.well(t, nil, "undrain", one)
	for _, n := range []int{4, 2, 3} {
		the.well(t, []string{"scaled"}, "scale", fmt.Sprint(n))
		if up := the.serversUp(t, string(live)); up != n {
			t.Errorf("scaled to %d, and %d servers are up", n, up)
		}
	}
	// And back.
	the.well(t, []string{"rolled back, " + string(old) + " is live .*: asked for"}, "rollback")
	the.settled(t, old, oldImage, run)
	welcomed(t, p)
	unharmed(t, run)
}

// Many in a row, as make e2e-deploy with N=20 does before a release.
func TestDeploysInARow(t *testing.T) {
	storyteller(t)
	images := []string{version(t, "even"), version(t, "odd")}
	run := the.crowd(t)
	wait(t, 10*time.Second)
	var first []time.Duration
	handshakes := 0
	for n := range *deploys {
		run.Mark()
		p := the.probe(t.Context(), *newcomers)
		d := the.deploy(t, images[n%2])
		d.reached(t, "check") // the rename has been
		at := the.renamed(t).Sub(p.start)
		code, e := d.wait(t)
		if code != 0 || e.Outcome != deploy.Deployed {
			t.Fatalf("exit %d, %+v", code, e)
		}
		visits := welcomed(t, p)
		handshakes += len(visits)
		first = append(first, firstOn(visits, string(e.Color), at))
		the.settled(t, e.Color, images[n%2], run)
		run.Mark()
		wait(t, 5*time.Second) // a pause of its own, to compare with
	}
	report := unharmed(t, run)
	slices.Sort(first)
	t.Logf("%d deploys, %d handshakes meanwhile; from the rename to the begin of the first new connection on the new color: median %v, worst %v",
		len(first), handshakes, first[len(first)/2], first[len(first)-1])
	// Phases: before, then by turns a deploy and the quiet after it.
	t.Logf("each client's longest pause in a deploy: %s; while nothing happened: %s", pauses(report, 1), pauses(report, 0))
}

// firstOn is how long after the rename the first handshake began that met the new
// color.
func firstOn(visits []visit, color string, at time.Duration) time.Duration {
	least := time.Hour
	for _, v := range visits {
		if v.err == nil && v.color == color && v.began >= at {
			least = min(least, v.began-at)
		}
	}
	return least
}

// pauses are the longest ones of each subscriber in phases of one kind.
func pauses(report *load.Report, odd int) string {
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
