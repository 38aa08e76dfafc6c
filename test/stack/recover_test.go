//go:build stack

package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// buildSwitchyard builds cmd/switchyard once, into the shared stack's folder.
var buildSwitchyard = sync.OnceValues(func() (string, error) {
	path := filepath.Join(sharedStack.dir, "switchyard")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "switchyard/cmd/switchyard").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cmd/switchyard: %w\n%s", err, out)
	}
	return path, nil
})

// runSwitchyard runs the operator's command on the stack, and returns its exit code and
// output.
func (s *stack) runSwitchyard(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	path, err := buildSwitchyard()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(args, "--dir", s.path(""), "--project", s.name)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("switchyard %s: exit %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out.String(), errs.String())
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// mustSucceed runs a command, and fails the test unless it succeeds and its output
// matches each of the regular expressions.
func (s *stack) mustSucceed(t *testing.T, says []string, args ...string) string {
	t.Helper()
	code, out, errs := s.runSwitchyard(t, args...)
	if code != 0 {
		t.Fatalf("switchyard %v: exit %d\n%s%s", args, code, out, errs)
	}
	for _, text := range says {
		if !regexp.MustCompile(text).MatchString(out) {
			t.Errorf("switchyard %v does not say %q:\n%s%s", args, text, out, errs)
		}
	}
	return out
}

// startPublishers starts clients that publish, and whose history is judged.
func (s *stack) startPublishers(t *testing.T, rate float64) *load.Run {
	t.Helper()
	run, err := load.Start(t.Context(), load.Plan{
		URLs: []string{"wss://" + domain + "/ws"}, Dial: s.dial, TLS: s.tlsConfig(), Tokens: []string{s.token("ada"), s.token("bob")},
		Clients: 60, Rooms: 6, Rate: rate, RampUp: 2 * time.Second, Settle: time.Minute, Prefix: strings.ToLower(t.Name()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// waitAcked waits until so many more publishes are acked.
func waitAcked(t *testing.T, run *load.Run, more int64) {
	t.Helper()
	from := run.Progress().Acked
	eventuallyWithin(t, 2*time.Minute, "messages to be stored", func() error {
		if n := run.Progress().Acked - from; n < more {
			return fmt.Errorf("%d acked", n)
		}
		return nil
	})
}

// The commands of an operator's day work, on a stack under load.
func TestTheCommandsOfADay(t *testing.T) {
	run := sharedStack.startPublishers(t, 50)
	waitAcked(t, run, 500)
	made := sharedStack.mustSucceed(t, []string{"Backup .* [1-9][0-9]* messages in", "Good: restored and replayed to"}, "backup", "--verify")
	name := regexp.MustCompile(`[0-9]{8}T[0-9]{6}Z`).FindString(made)
	sharedStack.mustSucceed(t, []string{`Good: restored and replayed to .* [1-9][0-9]* messages in [1-9][0-9]* rooms without a hole`}, "backup", "verify", name)
	sharedStack.mustSucceed(t, []string{"(?m)^" + name + `  .*Z  .*Z$`, "WAL archive: [1-9][0-9]* segments"}, "backup", "list")
	prom := sharedStack.path("backups/metrics/switchyard_backup.prom")
	if err := os.Remove(prom); err != nil {
		t.Error(err)
	}
	sharedStack.mustSucceed(t, nil, "backup", "metrics")
	if text := read(t, prom); !regexp.MustCompile(`\nswitchyard_backup_last_verified_timestamp_seconds [1-9]`).MatchString(text) {
		t.Errorf("%s", text)
	}
	// A minute after the start, Prometheus answers every query of check.
	var page string
	eventuallyWithin(t, 2*time.Minute, "an answer to each query of check", func() error {
		if _, page, _ = sharedStack.runSwitchyard(t, "check", "--since", "10m"); strings.Contains(page, "no data") || strings.Contains(page, "Prometheus at") {
			return errors.New(page)
		}
		return nil
	})
	for _, says := range []string{"newest backup", "last verification", "containers", "most connections at once", "published", "memory of the host", "fullest disk"} {
		if !strings.Contains(page, says) {
			t.Errorf("check does not say %q", says)
		}
	}
	sharedStack.mustSucceed(t, []string{"blue", `(?m)^testthecommandsofaday-[0-5] +[0-9.]*[1-9][0-9.]* +10 `, "[1-9][0-9]* live rooms"}, "top", "--once", "--every", "5s")
	primary, _ := sharedStack.servers(t)
	sharedStack.mustSucceed(t, []string{"Statements on " + primary + " since", `(?m)^[1-9][0-9]* .*% .* FROM rooms WHERE name`, `(?m)^messages +[1-9]`}, "queries")
	sharedStack.mustSucceed(t, []string{"connections ended", "[1-9][0-9]+ are open", "Handshakes: .*ok [1-9]"}, "connections", "--since", "10m")
	sharedStack.mustSucceed(t, []string{"Since .* the nodes logged"}, "errors", "--since", "10m")
	folder := t.TempDir()
	sharedStack.mustSucceed(t, []string{"RESIDENT", "MiB", "on the heap, by the function that allocated it", "switchyard/internal/"}, "memory", "--out", folder)
	if heaps, _ := filepath.Glob(filepath.Join(folder, sharedStack.name+"-app_*.heap.pprof")); len(heaps) < 3 {
		t.Errorf("profiles: %v", heaps)
	}
	out := filepath.Join(folder, "report")
	sharedStack.mustSucceed(t, []string{"report.md"}, "report", "--class", "P2", "--title", "A try", "--out", out)
	text, err := os.ReadFile(filepath.Join(out, "report.md"))
	if err != nil || !strings.Contains(string(text), "![Open connections, by color](connections.svg)") || strings.Contains(string(text), "unknown:") {
		t.Errorf("%v\n%s", err, text)
	}
	stopAndAssertClean(t, run)
}

// servers returns the server that is recorded as the primary, and the other one.
func (s *stack) servers(t *testing.T) (primary, standby string) {
	t.Helper()
	b := testkit.ReadFile(t, s.path("state/postgres/primary"))
	if primary = strings.TrimSpace(string(b)); primary == "postgres" {
		return primary, "postgres_replica"
	}
	return primary, "postgres"
}

// rebuildStandby makes a server that was the primary a standby of the present one.
func (s *stack) rebuildStandby(t *testing.T, server string) {
	t.Helper()
	out, err := s.compose("rm", "-sf", server)
	must(t, out, err)
	out, err = s.run("docker", "volume", "rm", s.name+"_"+server)
	must(t, out, err)
	out, err = s.compose("up", "-d", "--no-deps", "--wait", "--wait-timeout", "120", server)
	must(t, out, err)
}

// assertLossDeclared judges a run during which the log went back to an older state: the
// loss of acked messages was declared, by a second epoch.
func (s *stack) assertLossDeclared(t *testing.T, run *load.Run) {
	t.Helper()
	run.Stop()
	report := run.Report()
	primary, _ := s.servers(t)
	stored, err := strconv.Atoi(s.sql(t, primary, `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name LIKE '`+strings.ToLower(t.Name())+`-%'`))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("longest wait for an ack %v; %d acked, %d in the log: %d lost and declared, %d undeclared\n%s",
		report.PublishToAck.Max().Round(time.Millisecond), report.Acked, stored, report.Acked-stored, report.FaultCount(), report)
	if report.Verdict != load.Clean || report.Epochs != 2 || stored > report.Acked+report.Unknown {
		t.Errorf("verdict %v, %d epochs", report.Verdict, report.Epochs)
	}
}

// The primary is killed under load and the standby promoted: every lost message is
// declared, and no other.
func TestAPromotionUnderLoad(t *testing.T) {
	primary, standby := sharedStack.servers(t)
	run := sharedStack.startPublishers(t, 100)
	waitAcked(t, run, 300)
	if code, _, says := sharedStack.runSwitchyard(t, "promote-replica"); code != 1 || !strings.Contains(says, "it answers: promote-replica --stop-primary") {
		t.Errorf("exit %d while the primary answers: %s", code, says)
	}
	out, err := sharedStack.compose("kill", primary)
	must(t, out, err)
	sharedStack.mustSucceed(t, []string{standby + " takes writes now", "Its last commit is from"}, "promote-replica")
	waitAcked(t, run, 300)
	sharedStack.mustSucceed(t, []string{"[1-9][0-9]* kinds of errors and warnings", "(?m)^(ERROR|WARN) +[1-9]"}, "errors", "--since", "5m")
	sharedStack.assertLossDeclared(t, run)
	sharedStack.rebuildStandby(t, primary)
}
