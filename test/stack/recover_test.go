//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
)

// operator builds cmd/switchyard once.
var operator = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "switchyard-operator-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "switchyard")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "switchyard/cmd/switchyard").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cmd/switchyard: %w\n%s", err, out)
	}
	return path, nil
})

// switchyard runs the operator's command on the stack, and returns what it exits
// with and says.
func (s *stack) switchyard(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	path, err := operator()
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

// well runs a command that is to succeed and to say some things.
func (s *stack) well(t *testing.T, says []string, args ...string) string {
	t.Helper()
	code, out, errs := s.switchyard(t, args...)
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

// talk starts clients that publish and are judged.
func (s *stack) talk(t *testing.T, rate float64) *load.Run {
	t.Helper()
	run, err := load.Start(t.Context(), load.Plan{
		URLs: []string{"wss://" + domain + "/ws"}, Dial: s.dial, TLS: s.tls(), Tokens: []string{s.token("ada"), s.token("bob")},
		Clients: 60, Rooms: 6, Rate: rate, RampUp: 2 * time.Second, Settle: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// acked waits until so many more publishes were acked.
func acked(t *testing.T, run *load.Run, more int64) {
	t.Helper()
	from := run.Progress().Acked
	eventually(t, 2*time.Minute, "messages are stored", func() error {
		if n := int64(run.Progress().Acked) - int64(from); n < more {
			return fmt.Errorf("%d acked", n)
		}
		return nil
	})
}

// The commands of an operator's day, on a stack that has something to tell.
func TestTheCommandsOfADay(t *testing.T) {
	run := the.talk(t, 50)
	acked(t, run, 500)
	the.well(t, []string{"Backup .* messages in", "Good: restored and replayed to"}, "backup", "--verify")
	the.well(t, []string{"NAME", "WAL archive: [0-9]+ segments"}, "backup", "list")
	the.well(t, nil, "backup", "metrics")
	if _, err := os.Stat(the.path("backups/metrics/switchyard_backup.prom")); err != nil {
		t.Error(err)
	}
	// Everything that Prometheus is asked has an answer.
	_, page, _ := the.switchyard(t, "check", "--since", "10m")
	for _, says := range []string{"newest backup", "newest proof", "containers", "most connections at once", "published", "memory of the host", "fullest disk"} {
		if !strings.Contains(page, says) {
			t.Errorf("check does not say %q", says)
		}
	}
	if strings.Contains(page, "nothing measures it") || strings.Contains(page, "Prometheus at") {
		t.Errorf("check asked what nobody answers:\n%s", page)
	}
	the.well(t, []string{"blue", "verify-", "[0-9]+ live rooms"}, "top", "--once", "--every", "5s")
	the.well(t, []string{"rooms", "messages"}, "queries")
	the.well(t, []string{"connections ended", "are open"}, "connections", "--since", "10m")
	the.well(t, []string{"Since .* the nodes logged"}, "errors", "--since", "10m")
	folder := t.TempDir()
	the.well(t, []string{"RESIDENT", "on the heap, by who allocated it"}, "memory", "--out", folder)
	out := filepath.Join(folder, "report")
	the.well(t, []string{"report.md"}, "report", "--class", "P2", "--title", "A try", "--out", out)
	text, err := os.ReadFile(filepath.Join(out, "report.md"))
	if err != nil || !strings.Contains(string(text), "![Open connections, by color](connections.svg)") || strings.Contains(string(text), "not known") {
		t.Errorf("%v\n%s", err, text)
	}
	judge(t, run)
}

// primary is the server on record, and the other one.
func (s *stack) servers(t *testing.T) (primary, standby string) {
	t.Helper()
	b, err := os.ReadFile(s.path("state/postgres/primary"))
	if err != nil {
		t.Fatal(err)
	}
	if primary = strings.TrimSpace(string(b)); primary == "postgres" {
		return primary, "postgres_replica"
	}
	return primary, "postgres"
}

// psql asks a server.
func (s *stack) psql(t *testing.T, server, query string) string {
	t.Helper()
	out, err := s.compose("exec", "-T", server, "psql", "-U", "postgres", "-d", "switchyard", "-Atqc", query)
	return must(t, out, err)
}

// follow makes a server that was the primary a standby of the present one.
func (s *stack) follow(t *testing.T, server string) {
	t.Helper()
	out, err := s.compose("rm", "-sf", server)
	must(t, out, err)
	out, err = s.run("docker", "volume", "rm", s.name+"_"+server)
	must(t, out, err)
	out, err = s.compose("up", "-d", "--no-deps", "--wait", "--wait-timeout", "120", server)
	must(t, out, err)
}

// The primary is killed under load and the standby promoted: what was lost is
// declared, nothing else is.
func TestAPromotionUnderLoad(t *testing.T) {
	primary, standby := the.servers(t)
	run := the.talk(t, 100)
	acked(t, run, 300)
	if code, _, says := the.switchyard(t, "promote-replica"); code != 1 || !strings.Contains(says, "it answers: promote-replica --stop-primary") {
		t.Errorf("exit %d while the primary answers: %s", code, says)
	}
	out, err := the.compose("kill", primary)
	must(t, out, err)
	the.well(t, []string{standby + " takes writes now", "The last commit that it has is from"}, "promote-replica")
	acked(t, run, 300)
	run.Stop()
	report := run.Report()
	t.Logf("worst pause of a client: %v\n%s", report.WorstPause.WorstPause, report)
	if report.Verdict != load.Clean || report.Epochs != 2 {
		t.Errorf("verdict %v, %d epochs", report.Verdict, report.Epochs)
	}
	the.follow(t, primary)
}

// The whole drill: a backup, publishing goes on, the primary's volume is
// destroyed, the stack is brought back to a moment, and serves. Clients resume
// or are told gap with the right range.
func TestTheWholeDrill(t *testing.T) {
	primary, standby := the.servers(t)
	var mu sync.Mutex
	var gaps []client.Gap
	witness := the.connect(t, "witness", nil)
	_, err := witness.Join(t.Context(), "drill", client.Start(), client.Handler{
		Message: func(message.Message) {}, Gap: func(g client.Gap) { mu.Lock(); defer mu.Unlock(); gaps = append(gaps, g) },
	})
	if err != nil {
		t.Fatal(err)
	}
	say := func(n int) (last client.Ack) {
		for i := range n {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			last, err = witness.Publish(ctx, "drill", json.RawMessage(fmt.Sprint(i)), "")
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
		return last
	}
	run := the.talk(t, 100)
	say(20)
	the.well(t, []string{"Backup "}, "backup")
	kept := say(20)
	wait(t, 2*time.Second)
	to := time.Now().UTC()
	wait(t, 2*time.Second)
	lost := say(10)
	must(t, the.psql(t, primary, "SELECT pg_switch_wal()"), nil)
	eventually(t, time.Minute, "the last segment in the archive", func() error {
		if the.psql(t, primary, "SELECT last_archived_time > now() - interval '5 seconds' FROM pg_stat_archiver") != "t" {
			return errors.New("not yet")
		}
		return nil
	})
	// Away with both servers and the primary's disk.
	for _, server := range []string{standby, primary} {
		out, err := the.compose("rm", "-sf", server)
		must(t, out, err)
	}
	out, err := the.run("docker", "volume", "rm", the.name+"_"+primary)
	must(t, out, err)

	began := time.Now()
	the.well(t, []string{"Database: restored from"}, "restore", "--to", to.Format(time.RFC3339Nano))
	next := say(1)
	t.Logf("restored and serving %v after the word", time.Since(began).Round(time.Second))
	if next.Epoch == lost.Epoch || next.Seq != kept.Seq+1 {
		t.Errorf("before the moment %+v, after it %+v, after the restore %+v", kept, lost, next)
	}
	mu.Lock()
	if len(gaps) == 0 || gaps[0].Reason != "epoch" || gaps[0].Epoch != next.Epoch || gaps[0].From != 1 || gaps[0].To != kept.Seq {
		t.Errorf("gaps %+v, want 1 to %d of epoch %s", gaps, kept.Seq, next.Epoch)
	}
	mu.Unlock()
	acked(t, run, 200)
	judge(t, run)
	the.well(t, []string{"Good: restored"}, "backup", "--verify")
	the.follow(t, standby)
}
