//go:build stack

package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/deploy"
)

// Bad versions take themselves back, and nobody loses anything.
func TestDeployRollsBackBadVersions(t *testing.T) {
	storyteller(t)
	for _, story := range []struct {
		badness, after string
		trigger        deploy.Trigger
		kept           bool // it lived long enough to be asked
	}{
		{"ready", "0s", deploy.TriggerStart, true},
		{"errors", "0s", deploy.TriggerErrors, true},
		{"slow", "0s", deploy.TriggerSlow, true},
		{"leak", "40s", deploy.TriggerMemory, true},
		{"crash", crash.String(), deploy.TriggerCrash, false},
	} {
		t.Run(story.badness, func(t *testing.T) {
			storyteller(t)
			if story.badness == "ready" {
				readyLimit(t, "20s")
			}
			image := bad(t, story.badness, story.after)
			live := the.route(t)
			was, err := the.overview()
			if err != nil {
				t.Fatal(err)
			}
			run := the.crowd(t)
			p := the.probe(t.Context(), max(1, *newcomers/4)) // handshakes are operations, too, and would thin out the errors
			// Long enough for what is wrong to show.
			args := []string{"--watch", (*crash + *watch).String()}
			if story.badness == "errors" || story.badness == "slow" {
				args = []string{"--watch", "5s", "--watch-moved", "3m"} // it shows with clients on it
			}
			args = append(args, "--ignore", "alerts") // which the story before may have set off
			code, e := the.deploy(t, image, args...).wait(t)
			t.Logf("%s", e.Details())
			if code != 1 || e.Outcome != deploy.RolledBack || e.Color != live {
				t.Errorf("exit %d, %+v", code, e)
			}
			if e.Trigger != story.trigger {
				t.Errorf("the trigger was %q (%s), not %q", e.Trigger, e.Reason, story.trigger)
			}
			the.settled(t, live, was.Replicas[live][0].Image.Ref, run)
			if out := must1(the.compose("ps", "-aq", "app_"+string(live.Other()))); strings.TrimSpace(out) != "" {
				t.Errorf("the bad color is there still: %s", out)
			}
			welcomed(t, p)
			unharmed(t, run)
			evidence(t, e, story.kept)
		})
	}
}

// readyLimit changes deploy.yml for one story.
func readyLimit(t *testing.T, limit string) {
	t.Helper()
	path := the.path("deploy.yml")
	text := strings.Replace(read(t, path), "ready_limit: 3m", "ready_limit: "+limit, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// evidence is what was kept of each replica.
func evidence(t *testing.T, e deploy.Entry, alive bool) {
	t.Helper()
	for _, what := range []string{".log", ".state.json", ".metrics", ".readyz.json", ".heap.pprof"} {
		found, err := filepath.Glob(filepath.Join(e.Evidence, "*"+what))
		if err != nil {
			t.Fatal(err)
		}
		if must := alive || what == ".log" || what == ".state.json"; must && len(found) != 3 {
			t.Errorf("%s has %d files *%s", e.Evidence, len(found), what)
		}
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || info.Size() == 0 {
				t.Errorf("%s is empty: %v", f, err)
			}
		}
	}
}

// What ails both versions is no reason to go back.
func TestDeployHoldsForInnocentFaults(t *testing.T) {
	storyteller(t)
	for name, fault := range map[string][]string{
		"PostgreSQL restarted": {"restart", "postgres"},
		"Redis killed":         {"kill", "redis"},
	} {
		t.Run(name, func(t *testing.T) {
			storyteller(t)
			image := version(t, "in-"+fault[1])
			run := the.crowd(t)
			d := the.deploy(t, image, "--watch", "60s", "--ignore", "alerts")
			d.reached(t, "watch")
			wait(t, 3*time.Second)
			out, err := the.compose(fault...)
			must(t, out, err)
			if fault[0] == "kill" {
				wait(t, 5*time.Second)
				out, err := the.compose("up", "-d", "--no-deps", fault[1])
				must(t, out, err)
			}
			code, e := d.wait(t)
			t.Logf("%s", e.Details())
			if code != 0 || e.Outcome != deploy.Deployed {
				t.Errorf("exit %d, %+v", code, e)
			}
			the.settled(t, e.Color, image, run)
			unharmed(t, run)
		})
	}
}
