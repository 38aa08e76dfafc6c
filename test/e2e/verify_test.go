package e2e

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// runSwitchyard runs the command to its end.
func runSwitchyard(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return startSwitchyard(t, args...).result()
}

// A switchyardProcess is the operator's command while it runs.
type switchyardProcess struct {
	*testkit.Process
	t      *testing.T
	stdout bytes.Buffer
}

func startSwitchyard(t *testing.T, args ...string) *switchyardProcess {
	t.Helper()
	path := testkit.BuildSwitchyard(t)
	p := &switchyardProcess{t: t}
	var err error
	if p.Process, err = testkit.Start(testkit.Program{Path: path, Args: args, Stdout: &p.stdout}); err != nil {
		t.Fatal(err)
	}
	return p
}

// result waits for the end of the command, and returns its exit code and what it
// printed.
func (p *switchyardProcess) result() (code int, stdout, stderr string) {
	p.t.Helper()
	code = p.ExitCode(p.t, 2*testkit.Timeout)
	return code, p.stdout.String(), p.Output()
}

// An operator verifies two nodes with the command, which also says when a node cannot
// be reached.
func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	code, out, errs := runSwitchyard(t, "verify", "--url", a.SocketURL(), "--url", b.SocketURL(),
		"--clients", "20", "--rooms", "4", "--rate", "100", "--duration", "2s", "--cut", "200ms", "--json")
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
	// Each room has five members, and one reader at the end.
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
		t.Errorf("no server at the second URL: exit %d\n%s%s", code, out, errs)
	}
}
