package checks

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"switchyard/internal/stack"
)

// The number of healthy containers leaves out those of the stopped color, and counts one that
// was only restarted.
func TestHealthyContainersAreCounted(t *testing.T) {
	node := stack.Container{Name: "app_blue-1", Service: stack.Blue.ComposeService(), Running: true, Health: "healthy"}
	stopped := stack.Container{Name: "app_green-1", Service: stack.Green.ComposeService(), Status: "exited (0)"}
	restarted := stack.Container{Name: "redis", Service: "redis", Running: true, Restarts: 2}
	dead := stack.Container{Name: "grafana", Service: "grafana", Status: "exited (1)", ExitCode: 1}
	for want, all := range map[string][]stack.Container{
		"1 are healthy; 1 nodes run": {node, stopped, stopped},
		"2 are healthy; 1 nodes run": {node, restarted, stopped, dead},
		"0 are healthy; 0 nodes run": {stopped, dead},
		"2 are healthy; 2 nodes run": {node, node},
	} {
		found := containers(t.Context(), &Facts{Containers: all})
		if last := found[len(found)-1]; last.Text != want {
			t.Errorf("%+v: %q, want %q", all, last.Text, want)
		}
	}
}

// A drain that takes longer than its window is not said to be within it.
func TestADrainThatTakesLongerThanItsWindow(t *testing.T) {
	config := new(stack.Config)
	text := `{"Services":{"` + stack.Blue.ComposeService() + `":{"stop_grace_period":"95s","environment":{"DRAIN_WINDOW":"10s","DRAIN_TIMEOUT":"25s"}}}}`
	if err := json.Unmarshal([]byte(text), config); err != nil {
		t.Fatal(err)
	}
	for clients, want := range map[int]string{
		4000:  "4000 clients move within DRAIN_WINDOW 10s",
		8000:  "8000 clients take 20s to move, longer than DRAIN_WINDOW 10s and within DRAIN_TIMEOUT 25s",
		12000: "over DRAIN_TIMEOUT 25s",
	} {
		f := &Facts{Route: stack.Route{Live: stack.Blue}, Snapshot: stack.Snapshot{Replicas: map[stack.Color][]stack.Replica{
			stack.Blue: {{Running: true, Health: stack.Health{Clients: clients}}},
		}}}
		if _, got := Summarize(drainBudget(f, config)); !strings.Contains(got, want) {
			t.Errorf("%d clients: %q, want %q", clients, got, want)
		}
	}
}

// The check of a verified backup fails without Prometheus, as the others do.
func TestAVerifiedBackupNeedsPrometheus(t *testing.T) {
	f := &Facts{PrometheusErr: errors.New("no Prometheus here")}
	if level, text := Summarize(verifiedBackup(t.Context(), f)); level != Fail || text != "no Prometheus here" {
		t.Errorf("%v %q", level, text)
	}
}
