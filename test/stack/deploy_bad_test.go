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

// A deploy of a bad version is rolled back, and no client loses a message.
func TestDeployRollsBackBadVersions(t *testing.T) {
	prepareDeployTest(t)
	for _, tt := range []struct {
		defect, after string
		trigger       deploy.Trigger
		reachable     bool // while its diagnostics are collected
	}{
		{"ready", "0s", deploy.TriggerStart, true},
		{"errors", "0s", deploy.TriggerErrors, true},
		{"slow", "0s", deploy.TriggerSlow, true},
		{"leak", "40s", deploy.TriggerMemory, true},
		{"crash", crashAfter.String(), deploy.TriggerCrash, false},
	} {
		t.Run(tt.defect, func(t *testing.T) {
			prepareDeployTest(t)
			if tt.defect == "ready" {
				setReadyLimit(t, "20s")
			}
			image := buildBadVersion(t, tt.defect, tt.after)
			live := sharedStack.routedColor(t)
			was, err := sharedStack.overview()
			if err != nil {
				t.Fatal(err)
			}
			run := sharedStack.startClients(t)
			p := sharedStack.startProber(t.Context(), max(1, *handshakeRate/4)) // handshakes are operations, too, and would lower the rate of errors
			// Long enough for the defect to show.
			args := []string{"--watch", (*crashAfter + *watchDuration).String()}
			if tt.defect == "errors" || tt.defect == "slow" {
				args = []string{"--watch", "5s", "--watch-moved", "3m"} // these show once clients have moved
			}
			args = append(args, "--ignore", "alerts") // an earlier test may have made some fire
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
				t.Errorf("containers of the bad version are left: %s", out)
			}
			assertNoFailures(t, p)
			assertUnharmed(t, run)
			assertDiagnostics(t, e, tt.reachable)
		})
	}
}

// setReadyLimit changes deploy.yml until the next prepareDeployTest.
func setReadyLimit(t *testing.T, limit string) {
	t.Helper()
	path := sharedStack.path("deploy.yml")
	text := strings.Replace(read(t, path), "ready_limit: 3m", "ready_limit: "+limit, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// assertDiagnostics checks the files that a rollback kept of each replica. All of them
// must be there if the replicas were reachable, else logs and states alone.
func assertDiagnostics(t *testing.T, e deploy.HistoryEntry, reachable bool) {
	t.Helper()
	for _, what := range []string{".log", ".state.json", ".metrics", ".readyz.json", ".heap.pprof"} {
		found, err := filepath.Glob(filepath.Join(e.DiagnosticsDir, "*"+what))
		if err != nil {
			t.Fatal(err)
		}
		if must := reachable || what == ".log" || what == ".state.json"; must && len(found) != 3 {
			t.Errorf("%s has %d files *%s", e.DiagnosticsDir, len(found), what)
		}
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || info.Size() == 0 {
				t.Errorf("%s is empty: %v", f, err)
			}
		}
	}
}

// A fault that affects both versions does not roll back a deploy.
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
