package stack

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// recordedStack returns the recorded stack. outputs replace parts of the record.
func recordedStack(t *testing.T, outputs testkit.DockerOutputs, answers testkit.Transport) *Stack {
	t.Helper()
	testkit.FakeDocker(t, outputs)
	return &Stack{Dir: t.TempDir(), File: DefaultFile, Project: "switchyard-e2e", Client: &http.Client{Transport: answers}}
}

func TestInspectReadsTheContainers(t *testing.T) {
	s, err := recordedStack(t, nil, withConnections(testkit.RecordedTransport(t), "12")).Replicas().Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range s.Replicas[Blue] {
		if !r.Serves() || r.Clients != 12 || r.Number != i+1 || r.Name != fmt.Sprintf("switchyard-e2e-app_blue-%d", i+1) || r.Deployment != "blue-1" ||
			r.Image.Ref != "switchyard:e2e" || !strings.HasPrefix(r.Image.ID, "sha256:") || r.MemoryLimit != 1<<30 ||
			r.Version != "e2e" || !strings.HasPrefix(r.Address, "172.19.0.") || !strings.HasSuffix(r.Address, ":8000") || r.ExitReason != "" {
			t.Errorf("%+v", r)
		}
	}
	if s.CountServing(Blue) != 3 || s.CountServing(Green) != 3 {
		t.Errorf("%d replicas of blue and %d of green serve, want 3 each", s.CountServing(Blue), s.CountServing(Green))
	}
	// The kernel killed one for its memory, and all drain.
	text := strings.Replace(testkit.Recorded(t, "inspect.json"), `"OOMKilled":false,"ExitCode":0`, `"OOMKilled":true,"ExitCode":137`, 3)
	ready := testkit.RecordedTransport(t)
	draining := recordedStack(t, testkit.DockerOutputs{"inspect --type container": text}, func(url, query string) (int, string) {
		if strings.HasSuffix(url, "/readyz") {
			return 503, `{"status":"draining","log":"up","delivery":"stale","broker":"down","sessions":"refused","drain":{"phase":"moving","lost":2}}`
		}
		return ready(url, query)
	})
	if s, err = draining.Replicas().Inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.Replicas[Blue][0]; r.ExitReason != "killed: out of memory" || r.Drain != "moving" || r.LostClients != 2 || r.Serves() || r.Problem() != "delivery stale" || r.UnhealthyComponents["broker"] != "down" || r.UnhealthyComponents["sessions"] != "refused" {
		t.Errorf("%+v", r)
	}
	// A page of metrics that Prometheus would refuse says nothing.
	unreadable := recordedStack(t, nil, withConnections(ready, "many"))
	if s, err := unreadable.Replicas().Inspect(t.Context()); err != nil || s.Replicas[Blue][0].Clients != 0 || s.Replicas[Blue][0].Version != "" {
		t.Errorf("%+v, %v", s, err)
	}
	// A container that disappears between ps and inspect is no failure. An engine
	// that does not answer is one.
	gone := recordedStack(t, testkit.DockerOutputs{"inspect --type container": "Error: No such container: two\n\n" + testkit.Recorded(t, "inspect.json")}, ready)
	if s, err := gone.Replicas().Inspect(t.Context()); err != nil || s.CountServing(Blue) != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	unreachable := recordedStack(t, testkit.DockerOutputs{"inspect --type container": "Error: cannot connect to the Docker daemon"}, ready)
	if _, err := unreachable.Replicas().Inspect(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot connect") {
		t.Error(err)
	}
}

// withConnections is a transport whose nodes have other numbers of connections.
func withConnections(inner testkit.Transport, n string) testkit.Transport {
	return func(url, query string) (int, string) {
		status, body := inner(url, query)
		return status, strings.Replace(body, "connections 0", "connections "+n, 1)
	}
}

// An image that docker does not know by exactly one id is refused with a whole
// sentence.
func TestAnUnknownImageIsNamed(t *testing.T) {
	for output, says := range map[string]string{
		"[]":                             "docker image inspect v9: found 0 images, want 1",
		`[{"Id":"sha256:a"},{"Id":"b"}]`: "docker image inspect v9: found 2 images, want 1",
		"{":                              "docker image inspect v9: unexpected end of JSON input",
	} {
		images := Images{recordedStack(t, testkit.DockerOutputs{"image inspect": output, "pull -q": ""}, nil)}
		if _, err := images.Resolve(t.Context(), "v9"); err == nil || err.Error() != says {
			t.Errorf("%s: %v", output, err)
		}
	}
}

// The leftovers of a killed docker compose up are removed, but no replica with
// clients.
func TestStaleReplicasOfAnInterruptedStart(t *testing.T) {
	up := func(number, clients int) Replica {
		return Replica{Name: fmt.Sprint(number), Number: number, Running: true, Health: Health{Clients: clients}}
	}
	made := func(number int) Replica { return Replica{Name: fmt.Sprint(number), Number: number} }
	stopped := func(number int) Replica {
		return Replica{Name: fmt.Sprint(number), Number: number, ExitReason: "exit code 0"}
	}
	for want, replicas := range map[string][]Replica{
		"":    {up(1, 0), up(2, 0), stopped(3)},
		"3":   {up(1, 0), up(3, 0)},
		"2 3": {up(1, 0), made(2), up(3, 0)},
		"2":   {up(1, 0), made(2), up(3, 7)},
		"3 4": {stopped(1), up(3, 0), made(4)},
	} {
		if got := strings.Join(staleReplicas(replicas), " "); got != want {
			t.Errorf("stale are %q, want %q", got, want)
		}
	}
}
