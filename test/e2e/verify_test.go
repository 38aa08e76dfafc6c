package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// runSwitchyard runs the command to its end and returns its exit code, what it
// answered and what it said besides.
func runSwitchyard(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return startSwitchyard(t, args...).result()
}

// An switchyardProcess is the operator's command at work.
type switchyardProcess struct {
	*testkit.Process
	t      *testing.T
	stdout bytes.Buffer
}

func startSwitchyard(t *testing.T, args ...string) *switchyardProcess {
	t.Helper()
	path := testkit.BuildSwitchyard(t)
	o := &switchyardProcess{t: t}
	var err error
	if o.Process, err = testkit.Start(testkit.Program{Path: path, Args: args, Stdout: &o.stdout}); err != nil {
		t.Fatal(err)
	}
	return o
}

// result waits until it has ended.
func (o *switchyardProcess) result() (code int, stdout, stderr string) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 2*time.Minute)
	defer cancel()
	err := o.Wait(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		code = exit.ExitCode()
	default:
		o.t.Fatalf("%v\n%s", err, o.Output())
	}
	return code, o.stdout.String(), o.Output()
}

// An operator proves two nodes with the built command, and is told when nobody
// is there.
func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	code, out, errs := runSwitchyard(t, "verify", "--url", a.SocketURL(), "--url", b.SocketURL(),
		"--clients", "20", "--rooms", "4", "--rate", "100", "--duration", "3s", "--cut", "200ms", "--json")
	if code != 0 || errs != "" {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	var report struct {
		Verdict                                           string
		Faults                                            map[string]int
		Published, Acked, Delivered, Rooms, Gaps, Unknown int
		Subscribers                                       []struct{ Delivered int }
		PublishToDelivery                                 struct{ Count int } `json:"publish_to_delivery"`
		Run                                               struct{ URLs, Clients, Cuts, Reconnects, Unread int }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Five members of each room and a reader at the end.
	if report.Verdict != "clean" || report.Rooms != 4 || len(report.Subscribers) != 24 || report.Acked < 50 || report.Delivered != 6*report.Acked {
		t.Errorf("%s", out)
	}
	if report.Published != report.Acked || report.Gaps != 0 || report.Unknown != 0 || report.PublishToDelivery.Count < 5*report.Acked {
		t.Errorf("%s", out)
	}
	if r := report.Run; r.URLs != 2 || r.Clients != 20 || r.Cuts < 3 || r.Reconnects < 1 || r.Unread != 0 {
		t.Errorf("%+v", r)
	}
	for kind, n := range report.Faults {
		if n != 0 {
			t.Errorf("%d %s", n, kind)
		}
	}

	code, out, errs = runSwitchyard(t, "verify", "--url", a.SocketURL(), "--url", "ws://127.0.0.1:1/ws")
	if code != 2 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "can't connect to ws://127.0.0.1:1/ws") {
		t.Errorf("nobody there: exit %d\n%s%s", code, out, errs)
	}
}
