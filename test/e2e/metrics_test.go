package e2e

import (
	"strconv"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// A scrape is one reading of /metrics: the kind of each metric, and the value of each
// sample by its name with labels, as they are written there.
type scrape struct {
	kinds   map[string]string
	samples map[string]float64
}

func scrapeOf(t *testing.T, s *testkit.Server) scrape {
	t.Helper()
	got := scrape{map[string]string{}, map[string]float64{}}
	for line := range strings.Lines(testkit.Get(t, s.URL()+"/metrics")) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			got.kinds[name] = kind
			continue
		}
		space := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || space < 0 {
			continue
		}
		value, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got.samples[line[:space]] = value
	}
	return got
}

// sum adds the samples of a metric, whatever their labels.
func (s scrape) sum(name string) (total float64, found bool) {
	for sample, value := range s.samples {
		if bare, _, _ := strings.Cut(sample, "{"); bare == name {
			total, found = total+value, true
		}
	}
	return total, found
}

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

	var got scrape
	pollPage(t, "the end of a connection to be counted", func() bool {
		got = scrapeOf(t, s)
		// The server counts the two one after the other.
		return got.samples[`websocket_disconnections_total{reason="client"}`] == 1 &&
			got.samples["websocket_connection_duration_seconds_count"] == 1
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
		value, labelled := got.samples[name]
		if !labelled {
			value, _ = got.sum(name)
		}
		if _, there := got.sum(name); value != want || !labelled && !there {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
	for _, name := range []string{
		"websocket_messages_sent_total", "websocket_publish_duration_seconds_count", "websocket_delivery_duration_seconds_count",
		"websocket_resumes_total", "websocket_repairs_total", "websocket_canary_duration_seconds_count", "broker_publish_duration_seconds_count",
		"store_operation_duration_seconds_count", "store_batch_messages_count", "store_pool_max", "go_goroutines", "process_resident_memory_bytes",
	} {
		if value, _ := got.sum(name); value < 1 {
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
func assertBoundedLabels(t *testing.T, got scrape) {
	t.Helper()
	for name, kind := range got.kinds {
		if kind == "summary" && name != "go_gc_duration_seconds" { // the Go collector's own
			t.Errorf("%s is a summary", name)
		}
	}
	for sample := range got.samples {
		name, labels, _ := strings.Cut(sample, "{")
		for _, open := range []string{"room=", "user=", "session=", "id="} {
			if strings.Contains(labels, open) {
				t.Errorf("%s: a label whose values have no bound", sample)
			}
		}
		if strings.Contains(labels, "lobby") || strings.Contains(labels, "shop") {
			t.Errorf("%s names a room or a key", sample)
		}
		if build := strings.Contains(labels, "color=") || strings.Contains(labels, "version="); build && name != "switchyard_build_info" && name != "go_info" {
			t.Errorf("%s: labels of the build belong to switchyard_build_info", sample)
		}
	}
	if got.samples[`switchyard_build_info{color="blue",deployment="d42",version="dev"}`] != 1 {
		t.Error("switchyard_build_info lacks color, deployment or version")
	}
}
