package testkit

import (
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
)

// stackTestdata has the files of a recorded stack, seen from any package of internal.
var stackTestdata = filepath.Join("..", "stack", "testdata")

// Recorded returns a file of internal/stack/testdata/recorded: output of docker,
// Traefik's API, Prometheus and a replica, recorded on the stack of make e2e and
// shortened to what the commands read.
func Recorded(t testing.TB, name string) string {
	t.Helper()
	return string(ReadFile(t, filepath.Join(stackTestdata, "recorded", name)))
}

// A Transport answers HTTP requests by their URL and their Prometheus query.
// Status 0 stands for a refused connection.
type Transport func(url, query string) (int, string)

// RoundTrip implements http.RoundTripper.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
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

// DockerOutputs maps a part of docker's arguments to its output. An output that
// begins with "Error" is an error's text, and after an empty line the output that
// the failing command still prints.
type DockerOutputs map[string]string

// FakeDocker puts a docker on the path that prints the recorded outputs, and those
// of outputs.
func FakeDocker(t testing.TB, outputs DockerOutputs) {
	t.Helper()
	dir := t.TempDir()
	all := DockerOutputs{
		"ps -aq": "one two\n", "inspect --type container": Recorded(t, "inspect.json"), "config --format json": Recorded(t, "config.json"),
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
}

// RecordedTransport returns the recorded answers of a stack with blue live.
func RecordedTransport(t testing.TB) Transport {
	return func(url, query string) (int, string) {
		switch {
		case strings.HasSuffix(url, ":8000/readyz"):
			return 200, Recorded(t, "readyz.json")
		case strings.HasSuffix(url, ":8000/metrics"):
			return 200, Recorded(t, "metrics.txt")
		case strings.Contains(url, "/api/http/routers"):
			return 200, Recorded(t, "traefik-routers.json")
		case strings.Contains(url, "/api/http/services"):
			return 200, Recorded(t, "traefik-services.json")
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
		return 200, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"color":"blue","instance":"10.214.32.10:8000","job":"websocket-app"},"value":[1795699506.858,"35106816"]},{"metric":{"color":"blue","instance":"10.214.32.12:8000","job":"websocket-app"},"value":[1795699506.858,"32444416"]},{"metric":{"color":"blue","instance":"10.214.32.15:8000","job":"websocket-app"},"value":[1795699506.858,"30425088"]}]}}`
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

// TraefikDir returns a new folder of Traefik's files, with blue live.
func TraefikDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "dynamic"), 0o755), os.Mkdir(filepath.Join(dir, "staging"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string]string{
		"blue.yml": "blue.yml", "green.yml": "green.yml", "dynamic/services.yml": "services.yml", "dynamic/active.yml": "blue.yml",
	} {
		CopyFile(t, filepath.Join(stackTestdata, from), filepath.Join(dir, to))
	}
	return dir
}
