package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// recorded returns a file of testdata/recorded: output of docker, Traefik's API,
// Prometheus and a replica, recorded on the stack of make e2e and shortened to what
// this package reads.
func recorded(t *testing.T, name string) string {
	t.Helper()
	return string(testkit.ReadFile(t, filepath.Join("testdata", "recorded", name)))
}

// A fakeTransport answers HTTP requests by their URL and their Prometheus query.
// Status 0 stands for a refused connection.
type fakeTransport func(url, query string) (int, string)

func (t fakeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	query := r.URL.Query().Get("query")
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			return nil, err
		}
		query = r.PostForm.Get("query")
	}
	status, body := t(r.URL.String(), query)
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{"Content-Type": {"application/json"}}, Request: r}, nil
}

// useTransport replaces the transport of the requests to containers.
func useTransport(t *testing.T, w fakeTransport) {
	t.Helper()
	before := containerClient
	containerClient = &http.Client{Transport: w}
	t.Cleanup(func() { containerClient = before })
}

// dockerOutputs maps a part of docker's arguments to its output. An output that
// begins with "Error" is an error's text, and after an empty line the output that
// the failing command still prints.
type dockerOutputs map[string]string

// fakeDocker puts a docker on the path that prints the recorded outputs, and those
// of outputs.
func fakeDocker(t *testing.T, outputs dockerOutputs) *Compose {
	t.Helper()
	dir := t.TempDir()
	all := dockerOutputs{
		"ps -aq": "one two\n", "inspect --type container": recorded(t, "inspect.json"), "config --format json": recorded(t, "config.json"),
		"info --format": "/\n", "psql": "1|0\n", "run --rm": "[]\n", "image inspect": `[{"Id":"sha256:new"}]`,
	}
	maps.Copy(all, outputs)
	var script strings.Builder
	script.WriteString("#!/bin/sh\ncase \"$*\" in\n")
	for _, words := range slices.Sorted(maps.Keys(all)) {
		file := filepath.Join(dir, strings.NewReplacer(" ", "_", "/", "_").Replace(words))
		if err := os.WriteFile(file, []byte(all[words]), 0o644); err != nil {
			t.Fatal(err)
		}
		fail := ""
		if strings.HasPrefix(all[words], "Error") {
			message, _, _ := strings.Cut(all[words], "\n")
			fail = fmt.Sprintf(" | sed 1,2d; echo '%s' >&2; exit 1", message)
		}
		fmt.Fprintf(&script, "*'%s'*) cat '%s'%s;;\n", words, file, fail)
	}
	script.WriteString("*) echo \"unexpected: docker $*\" >&2; exit 1;;\nesac\n")
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script.String()), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return &Compose{Dir: dir, File: DefaultFile, Project: "switchyard-e2e"}
}

// recordedTransport returns the recorded answers of a stack with blue live.
func recordedTransport(t *testing.T) fakeTransport {
	return func(url, query string) (int, string) {
		switch {
		case strings.HasSuffix(url, ":8000/readyz"):
			return 200, recorded(t, "readyz.json")
		case strings.HasSuffix(url, ":8000/metrics"):
			return 200, recorded(t, "metrics.txt")
		case strings.Contains(url, "/api/http/routers"):
			return 200, recorded(t, "traefik-routers.json")
		case strings.Contains(url, "/api/http/services"):
			return 200, recorded(t, "traefik-services.json")
		case strings.HasSuffix(url, ":9093/-/ready"):
			return 200, "OK"
		case strings.HasSuffix(url, "/api/v1/alertmanagers"):
			return 200, `{"status":"success","data":{"activeAlertmanagers":[{"url":"http://alertmanager:9093/api/v2/alerts"}],"droppedAlertmanagers":[]}}`
		case strings.HasSuffix(url, "/api/v1/query"):
			return prometheusResponse(query)
		}
		return 404, "unexpected: " + url
	}
}

// prometheusResponse returns the recorded answer of Prometheus to a query.
func prometheusResponse(query string) (int, string) {
	metric, value := `{}`, "0"
	switch {
	case strings.HasPrefix(query, "ALERTS"):
		metric, value = `{"__name__":"ALERTS","alertname":"Watchdog","alertstate":"firing","severity":"info"}`, "1"
	case strings.HasPrefix(query, "process_resident_memory_bytes"):
		if !strings.Contains(query, `deployment="blue-1"`) {
			return 200, `{"status":"success","data":{"resultType":"vector","result":[]}}`
		}
		return 200, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"color":"blue","instance":"10.214.32.10:8000","job":"switchyard"},"value":[1795699506.858,"35106816"]},{"metric":{"color":"blue","instance":"10.214.32.12:8000","job":"switchyard"},"value":[1795699506.858,"32444416"]},{"metric":{"color":"blue","instance":"10.214.32.15:8000","job":"switchyard"},"value":[1795699506.858,"30425088"]}]}}`
	case strings.Contains(query, "backup"):
		value = fmt.Sprint(time.Now().Add(-time.Hour).Unix())
	case strings.HasPrefix(query, "(") && strings.Contains(query, "websocket_messages_received_total"):
		value = "1741"
	case strings.Contains(query, "publish_duration_seconds_count"):
		value = "799.2"
	case strings.Contains(query, "publish_duration_seconds_bucket"):
		value = "0.17192307692307718"
	case strings.Contains(query, "canary_duration_seconds_bucket"):
		value = "0.16750000000000007"
	}
	return 200, `{"status":"success","data":{"resultType":"vector","result":[{"metric":` + metric + `,"value":[1795699506.815,"` + value + `"]}]}}`
}

func TestInspectReadsTheContainers(t *testing.T) {
	c := fakeDocker(t, nil)
	useTransport(t, recordedTransport(t))
	s, err := c.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range s.Replicas[Blue] {
		if !r.Serves() || r.Number != i+1 || r.Name != fmt.Sprintf("switchyard-e2e-app_blue-%d", i+1) || r.Deployment != "blue-1" ||
			r.Image.Ref != "switchyard:e2e" || !strings.HasPrefix(r.Image.ID, "sha256:") || r.MemoryLimit != 1<<30 ||
			r.Version != "e2e" || !strings.HasPrefix(r.Address, "172.19.0.") || !strings.HasSuffix(r.Address, ":8000") || r.ExitReason != "" {
			t.Errorf("%+v", r)
		}
	}
	if s.countServing(Blue) != 3 || s.countServing(Green) != 3 {
		t.Errorf("%d replicas of blue and %d of green serve, want 3 each", s.countServing(Blue), s.countServing(Green))
	}
	// The kernel killed one for its memory, and all drain.
	text := strings.Replace(recorded(t, "inspect.json"), `"OOMKilled":false,"ExitCode":0`, `"OOMKilled":true,"ExitCode":137`, 3)
	c = fakeDocker(t, dockerOutputs{"inspect --type container": text})
	ready := recordedTransport(t)
	useTransport(t, func(url, query string) (int, string) {
		if strings.HasSuffix(url, "/readyz") {
			return 503, `{"status":"draining","log":"up","delivery":"stale","broker":"down","drain":{"phase":"moving","lost":2}}`
		}
		return ready(url, query)
	})
	if s, err = c.Inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.Replicas[Blue][0]; r.ExitReason != "killed: out of memory" || r.Drain != "moving" || r.LostClients != 2 || r.Serves() || r.problem() != "delivery stale" || r.UnhealthyComponents["broker"] != "down" {
		t.Errorf("%+v", r)
	}
	// A container that disappears between ps and inspect is no failure. An engine
	// that does not answer is one.
	useTransport(t, ready)
	gone := fakeDocker(t, dockerOutputs{"inspect --type container": "Error: No such container: two\n\n" + recorded(t, "inspect.json")})
	if s, err := gone.Inspect(t.Context()); err != nil || s.countServing(Blue) != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	unreachable := fakeDocker(t, dockerOutputs{"inspect --type container": "Error: cannot connect to the Docker daemon"})
	if _, err := unreachable.Inspect(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot connect") {
		t.Error(err)
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
		c := fakeDocker(t, dockerOutputs{"image inspect": output, "pull -q": ""})
		if _, err := c.Resolve(t.Context(), "v9"); err == nil || err.Error() != says {
			t.Errorf("%s: %v", output, err)
		}
	}
}

func TestTheOverviewShowsTheStatusOfEachColor(t *testing.T) {
	at := func(phases ...string) (all []Replica) {
		for i, phase := range phases {
			all = append(all, Replica{Name: fmt.Sprintf("app-%d", i+1), Running: true, Health: Health{Reachable: true, Ready: phase == "", Drain: phase}})
		}
		return all
	}
	for says, replicas := range map[string][]Replica{
		"blue     serving, 3 of 3 replicas":  at("", "", ""),
		"         app-2: drained":            at("", "drained", ""),
		"blue     draining, 0 of 2 replicas": at("moving", "drained"),
		"blue     drained, 0 of 2 replicas":  at("drained", "drained"),
		"blue     stopped":                   nil,
	} {
		o := &Overview{Route: &Route{Live: Blue}, Traefik: &BalancerStatus{Route: Route{Live: Blue}}, Replicas: map[Color][]Replica{Blue: replicas}}
		if text := o.String(); !strings.Contains(text, says+"\n") && !strings.Contains(text, says+" ready") {
			t.Errorf("the overview does not say %q:\n%s", says, text)
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

func TestTheStatusOfTraefik(t *testing.T) {
	balancer := newTraefik(t)
	balancer.API = func(context.Context) (string, error) { return "http://traefik:8080", nil }
	useTransport(t, recordedTransport(t))
	s, err := balancer.Status(t.Context())
	if err != nil || s.Route != (Route{Live: Blue}) || s.ServersUp[Blue] != 3 || s.ServersUp[Green] != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	all := recordedTransport(t)
	useTransport(t, func(url, query string) (int, string) {
		status, text := all(url, query)
		return status, strings.ReplaceAll(text, `"service":"app-blue","rule":"Host(`+"`chat", `"service":"live-blue","rule":"Host(`+"`chat")
	})
	if s, err := balancer.Status(t.Context()); err != nil || s.Route != (Route{Live: Blue}) || s.ServersUp[Blue] != 3 {
		t.Errorf("by the failovers: %+v, %v", s, err)
	}
	for name, tt := range map[string]struct {
		old, new string
		says     string
	}{
		"one router differs": {`"service":"app-blue","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", `"service":"app-green","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", "route to both colors"},
		"a router is gone":   {`"name":"ws@file"`, `"name":"other@file"`, "Traefik reports 1 of 2 routers"},
		"unknown service":    {`"service":"app-blue"`, `"service":"else"`, `a router that routes to "else"`},
		"other failover":     {`"service":"app-blue","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", `"service":"live-green","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", "route to both colors"},
	} {
		useTransport(t, func(url, query string) (int, string) {
			status, text := all(url, query)
			if strings.Contains(url, "routers") {
				changed := strings.Replace(strings.ReplaceAll(text, "&&", `\u0026\u0026`), tt.old, tt.new, 1)
				if changed == text {
					t.Errorf("%s: the record has no %s", name, tt.old)
				}
				text = changed
			}
			return status, text
		})
		if s, err := balancer.Status(t.Context()); err == nil || !strings.Contains(err.Error(), tt.says) || s.ServersUp[Green] != 3 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	useTransport(t, func(string, string) (int, string) { return 0, "" })
	if _, err := balancer.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "query Traefik") {
		t.Error(err)
	}
}

func TestAMetricsWindowFromPrometheus(t *testing.T) {
	c := fakeDocker(t, nil)
	s := &Stack{Prometheus: "http://prometheus:9090"}
	var asked []string
	useTransport(t, func(url, query string) (int, string) {
		asked = append(asked, query)
		return recordedTransport(t)(url, query)
	})
	w, err := s.Metrics(c).Window(t.Context(), "blue-1", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if w.Operations != 1741 || w.Errors != 0 || w.Publishes != 799.2 || w.P95.Round(time.Millisecond) != 172*time.Millisecond ||
		w.CanaryP95.Round(time.Millisecond) != 168*time.Millisecond || w.Replicas != 3 || w.Memory < .032 || w.Memory > .033 {
		t.Errorf("%+v", w)
	}
	for _, q := range asked {
		if !strings.Contains(q, `switchyard_build_info{deployment="blue-1"}`) || !strings.Contains(q, "[30s]") && !strings.HasPrefix(q, "process_") {
			t.Errorf("Prometheus was queried for %s", q)
		}
	}
	if alerts, err := s.Metrics(c).Alerts(t.Context()); err != nil || len(alerts) != 1 || alerts[0].Name != "Watchdog" || alerts[0].Severity != "info" {
		t.Errorf("%+v, %v", alerts, err)
	}
	for status, says := range map[int]string{0: "connection refused", 503: "query Prometheus"} {
		useTransport(t, func(string, string) (int, string) {
			return status, `{"status":"error","errorType":"unavailable","error":"starting"}`
		})
		if _, err := s.Metrics(c).Window(t.Context(), "blue-1", time.Minute); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

// withReplaced replaces a text in all answers.
func withReplaced(old, with string) func(fakeTransport) fakeTransport {
	return func(w fakeTransport) fakeTransport {
		return func(url, query string) (int, string) {
			status, text := w(url, query)
			return status, strings.ReplaceAll(text, old, with)
		}
	}
}

// withoutPort refuses connections to a port.
func withoutPort(port string) func(fakeTransport) fakeTransport {
	return func(w fakeTransport) fakeTransport {
		return func(url, query string) (int, string) {
			if strings.Contains(url, ":"+port+"/") {
				return 0, ""
			}
			return w(url, query)
		}
	}
}

// The error of a command names its subcommand, whatever flags come before it.
func TestACommandErrorNamesTheSubcommand(t *testing.T) {
	for want, args := range map[string]string{
		"compose up app_green": "compose -p yard -f /opt/docker-compose.prod.yml up -d --no-deps app_green",
		"inspect abc":          "inspect --type container abc",
		"ps":                   "ps -aq --no-trunc --filter label=x",
	} {
		if got := describeArgs(strings.Fields(args)); got != want {
			t.Errorf("%s is described as %q, want %q", args, got, want)
		}
	}
}
