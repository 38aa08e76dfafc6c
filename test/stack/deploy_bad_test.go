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
	prepareDeployTest(t)
	for _, tt := range []struct {
		badness, after string
		trigger        deploy.Trigger
		kept           bool // it lived long enough to be asked
	}{
		{"ready", "0s", deploy.TriggerStart, true},
		{"errors", "0s", deploy.TriggerErrors, true},
		{"slow", "0s", deploy.TriggerSlow, true},
		{"leak", "40s", deploy.TriggerMemory, true},
		{"crash", crashAfter.String(), deploy.TriggerCrash, false},
	} {
		t.Run(tt.badness, func(t *testing.T) {
			prepareDeployTest(t)
			if tt.badness == "ready" {
				setReadyLimit(t, "20s")
			}
			image := buildBadVersion(t, tt.badness, tt.after)
			live := sharedStack.routedColor(t)
			was, err := sharedStack.overview()
			if err != nil {
				t.Fatal(err)
			}
			run := sharedStack.startClients(t)
			p := sharedStack.startProber(t.Context(), max(1, *handshakeRate/4)) // handshakes are operations, too, and would thin out the errors
			// Long enough for what is wrong to show.
			args := []string{"--watch", (*crashAfter + *watchDuration).String()}
			if tt.badness == "errors" || tt.badness == "slow" {
				args = []string{"--watch", "5s", "--watch-moved", "3m"} // it shows with clients on it
			}
			args = append(args, "--ignore", "alerts") // which the story before may have set off
			code, e := sharedStack.startDeploy(t, image, args...).wait(t)
			t.Logf("%s", e.Details())
			if code != 1 || e.Outcome != deploy.RolledBack || e.Color != live {
				t.Errorf("exit %d, %+v", code, e)
			}
			if e.Trigger != tt.trigger {
				t.Errorf("the trigger was %q (%s), not %q", e.Trigger, e.Reason, tt.trigger)
			}
			sharedStack.assertLive(t, live, was.Replicas[live][0].Image.Ref, run)
			if out := outputOf(sharedStack.compose("ps", "-aq", "app_"+string(live.Other()))); strings.TrimSpace(out) != "" {
				t.Errorf("the bad color is there still: %s", out)
			}
			assertNoFailures(t, p)
			assertUnharmed(t, run)
			assertEvidence(t, e, tt.kept)
		})
	}
}

// setReadyLimit changes deploy.yml for one story.
func setReadyLimit(t *testing.T, limit string) {
	t.Helper()
	path := sharedStack.path("deploy.yml")
	text := strings.Replace(read(t, path), "ready_limit: 3m", "ready_limit: "+limit, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// assertEvidence is what was kept of each replica.
func assertEvidence(t *testing.T, e deploy.HistoryEntry, alive bool) {
	t.Helper()
	for _, what := range []string{".log", ".state.json", ".metrics", ".readyz.json", ".heap.pprof"} {
		found, err := filepath.Glob(filepath.Join(e.DiagnosticsDir, "*"+what))
		if err != nil {
			t.Fatal(err)
		}
		if must := alive || what == ".log" || what == ".state.json"; must && len(found) != 3 {
			t.Errorf("%s has %d files *%s", e.DiagnosticsDir, len(found), what)
		}
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || info.Size() == 0 {
				t.Errorf("%s is empty: %v", f, err)
			}
		}
	}
}

// What ails both versions is no reason to go back.
func TestDeployIgnoresUnrelatedFaults(t *testing.T) {
	prepareDeployTest(t)
	for name, fault := range map[string][]string{
		"PostgreSQL restarted": {"restart", "postgres"},
		"Redis killed":         {"kill", "redis"},
	} {
		t.Run(name, func(t *testing.T) {
			prepareDeployTest(t)
			image := buildVersion(t, "in-"+fault[1])
			run := sharedStack.startClients(t)
			d := sharedStack.startDeploy(t, image, "--watch", "60s", "--ignore", "alerts")
			d.waitStep(t, "watch")
			pauseFor(t, 3*time.Second)
			out, err := sharedStack.compose(fault...)
			must(t, out, err)
			if fault[0] == "kill" {
				pauseFor(t, 5*time.Second)
				out, err := sharedStack.compose("up", "-d", "--no-deps", fault[1])
				must(t, out, err)
			}
			code, e := d.wait(t)
			t.Logf("%s", e.Details())
			if code != 0 || e.Outcome != deploy.Deployed {
				t.Errorf("exit %d, %+v", code, e)
			}
			sharedStack.assertLive(t, e.Color, image, run)
			assertUnharmed(t, run)
		})
	}
}
