package e2e

import (
	"strings"
	"testing"

	"github.com/prometheus/common/model"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// An operator reads a node on PostgreSQL and Redis after some activity of clients,
// by the names in dashboards and alerts. The node's own canary publishes, too: metrics
// that count it have a least value only.
func TestClientActivityShowsInEveryMetric(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"COLOR": "blue", "DEPLOYMENT": "d42", "API_KEYS": "shop:" + apiKey,
	}
	s := testkit.StartServer(t, env)
	env["REDIS_URL"] = "" // broadcasts nothing: s finds its messages in the log
	noRedis := testkit.StartServer(t, env)
	exerciseServer(t, s, noRedis)

	var got metrictest.Page
	pollPage(t, "the end of a connection to be counted", func() bool {
		got = scrape(t, s)
		// The server counts the two one after the other.
		ended, _ := got.Value(t, `websocket_disconnections_total{reason="client"}`)
		durations, _ := got.Value(t, "websocket_connection_duration_seconds_count")
		return ended == 1 && durations == 1
	})
	exactly := map[string]float64{
		"websocket_active_connections":                      1,
		"websocket_draining":                                0,
		"websocket_queue_bytes":                             0,
		`websocket_connections_total{result="ok"}`:          2,
		`websocket_errors_total{type="conflict"}`:           1,
		`websocket_errors_total{type="invalid"}`:            1,
		`websocket_messages_received_total{type="publish"}`: 2,
		`websocket_messages_received_total{type="join"}`:    3,
		`websocket_messages_received_total{type="signal"}`:  1,
		"websocket_connection_duration_seconds_count":       1,
		"websocket_handshake_duration_seconds_count":        2,
		"broker_up":               1,
		"broker_reconnects_total": 0,
		"switchyard_build_info":   1,
		`http_requests_total{code="401",method="GET",route="/v1/rooms"}`: 1,
		`http_request_duration_seconds_count{route="/v1/rooms"}`:         1,
	}
	for name, want := range exactly {
		value, found := got.Value(t, name)
		if !found {
			value, found = got.Sum(name)
		}
		if value != want || !found {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
	for _, name := range []string{
		"websocket_messages_sent_total", "websocket_publish_duration_seconds_count", "websocket_delivery_duration_seconds_count",
		"websocket_resumes_total", "websocket_repairs_total", "websocket_canary_duration_seconds_count", "broker_publish_duration_seconds_count",
		"store_operation_duration_seconds_count", "store_batch_messages_count", "store_pool_max", "go_goroutines", "process_resident_memory_bytes",
	} {
		if value, _ := got.Sum(name); value < 1 {
			t.Errorf("%s is %v, want 1 at least", name, value)
		}
	}
	assertBoundedLabels(t, got)
}

// exerciseServer has two clients in a room: one publishes, makes a mistake, signals
// and closes, the other resumes and stays. A third one publishes on the other node.
func exerciseServer(t *testing.T, s, noRedis *testkit.Server) {
	t.Helper()
	a, b, far := dialRaw(t, s), dialRaw(t, s), dialRaw(t, noRedis)
	a.send(`{"type":"join","room":"lobby"}`)
	a.readUntil("joined")
	a.send(`{"type":"publish","room":"lobby","id":"1","data":"one"}`)
	a.readUntil("ack")
	a.send(`{"type":"publish","room":"lobby","id":"1","data":"other"}`)
	a.readUntil("error")
	a.send(`{"type":"join","room":"no such name"}`)
	a.readUntil("error")
	a.send(`{"type":"signal","room":"lobby","data":1}`)
	a.readUntil("signal")
	b.send(`{"type":"join","room":"lobby","after":0}`)
	b.readUntil("message")
	far.send(`{"type":"publish","room":"lobby","data":"two"}`)
	b.readUntil("message")
	if err := a.ws.Close(1000, ""); err != nil {
		t.Fatal(err)
	}
	testkit.Get(t, s.URL()+"/v1/rooms") // without a key
}

// assertBoundedLabels checks that a metric costs the same however many rooms and
// users there are, and that it can be summed over nodes and releases.
func assertBoundedLabels(t *testing.T, got metrictest.Page) {
	t.Helper()
	for name, kind := range got.Types {
		if kind == "summary" && name != "go_gc_duration_seconds" { // the Go collector's own
			t.Errorf("%s is a summary", name)
		}
	}
	for _, s := range got.Samples {
		name := s.Metric[model.MetricNameLabel]
		for label, value := range s.Metric {
			for _, open := range []string{"room", "user", "session", "id"} {
				if strings.HasSuffix(string(label), open) {
					t.Errorf("%s: a label whose values have no bound", s.Metric)
				}
			}
			if label != model.MetricNameLabel && (strings.Contains(string(value), "lobby") || strings.Contains(string(value), "shop")) {
				t.Errorf("%s names a room or a key", s.Metric)
			}
			if build := label == "color" || label == "version"; build && name != "switchyard_build_info" && name != "go_info" {
				t.Errorf("%s: labels of the build belong to switchyard_build_info", s.Metric)
			}
		}
	}
	if info, _ := got.Value(t, `switchyard_build_info{color="blue",deployment="d42",version="dev"}`); info != 1 {
		t.Error("switchyard_build_info lacks color, deployment or version")
	}
}
