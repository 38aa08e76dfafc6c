package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func expectContains(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, s := range want {
		if !strings.Contains(got, s) {
			t.Errorf("%q is not in:\n%s", s, got)
		}
	}
}

func dial(t *testing.T, s *testkit.Server) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{URLs: []string{s.SocketURL()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// One real node is asked for its rooms, its heap, its ended connections and its
// errors.
func TestARunningNodeIsInspected(t *testing.T) {
	t.Parallel()
	s := &fakeStack{t: t, server: testkit.StartServer(t, map[string]string{"RATE_PUBLISH": "0", "LOG_FORMAT": "json"}), containers: []stack.Container{
		nodeContainer("stack-app_blue-1"), {Name: "stack-app_green-1", Service: "app_green", Status: "exited with 0"},
	}}
	c := dial(t, s.server)
	last := make(chan struct{})
	if _, err := c.Join(t.Context(), "lobby", client.Now(), client.Handler{Message: func(m message.Message) {
		if m.Seq == 10 {
			close(last)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	w := &Watcher{Stack: s, MaxRooms: 5, Prometheus: fakePrometheus(t, map[string]string{
		"websocket_active_connections": seriesJSON(`"instance":"10.0.0.2:8000","color":"blue"`, 1),
		"process_resident_memory":      seriesJSON(`"instance":"10.0.0.2:8000","color":"blue"`, 64<<20),
	})}
	if _, err := w.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := c.Publish(t.Context(), "lobby", json.RawMessage(`1`), ""); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Receive(t, "the last message", last) // an ack may come before the room has it
	now, err := w.Snapshot(t.Context())
	if err != nil || len(now.Rooms) != 1 || now.Rooms[0].Members != 1 || now.Rooms[0].Seq != 10 || now.Rooms[0].Rate <= 0 {
		t.Fatalf("%+v, %v", now, err)
	}
	expectContains(t, now.String(), "1 live rooms", "lobby", "64.0 MiB", "blue 10.0.0.2:8000")

	dir := t.TempDir()
	m, err := ReadMemory(t.Context(), s, nil, dir)
	if err != nil || len(m.Heaps) != 1 || m.Heaps[0].Error != "" || m.Heaps[0].Bytes <= 0 || len(m.Heaps[0].Sites) == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	// The report is about the profile that was written.
	b, err := os.ReadFile(m.Heaps[0].File)
	if err != nil {
		t.Fatal(err)
	}
	if total, _, err := parseHeap(b); err != nil || total != m.Heaps[0].Bytes {
		t.Errorf("%d bytes are reported, and %d are in the profile, %v", m.Heaps[0].Bytes, total, err)
	}
	expectContains(t, m.String(), "on the heap, by the function that allocated it", "go tool pprof")

	c.Close()
	testkit.Eventually(t, "the node to log the end of the connection", func() bool { return strings.Contains(s.server.Output(), "connection ended") })
	ended, err := ReadConnections(t.Context(), s, nil, time.Now().Add(-time.Hour))
	if err != nil || ended.Ended != 1 || ended.AddressCount != 1 || ended.Addresses[0].Address != "127.0.0.1" || ended.Addresses[0].Short != 1 {
		t.Fatalf("%+v, %v", ended, err)
	}
	expectContains(t, ended.String(), "1 connections ended", "from 1 addresses", "Reasons: client 1.")
	found, err := ReadErrors(t.Context(), s, nil, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range found.Kinds {
		if k.Level == "ERROR" {
			t.Errorf("a healthy node logs %+v", k)
		}
	}
}

func TestErrorsAreGroupedByKind(t *testing.T) {
	s := &fakeStack{t: t, log: `{"time":"2026-11-26T01:00:00Z","level":"ERROR","msg":"the log can't be written","error":"dial: refused"}
{"time":"2026-11-26T02:00:00Z","level":"ERROR","msg":"the log can't be written","error":"timeout"}
{"time":"2026-11-26T02:00:00Z","level":"WARN","msg":"slow"}
{"time":"2026-11-26T02:00:00Z","level":"INFO","msg":"serving"}
Switchyard is at http://0.0.0.0:8000
panic: runtime error
` + `{"time":"2026-11-26T02:00:00Z","level":"ERROR","msg":"` + strings.Repeat("x", 2*maxLine) + "\"}\n"}
	p := fakePrometheus(t, map[string]string{"websocket_errors_total": seriesJSON(`"type":"internal"`, 12) + "," + seriesJSON(`"type":"invalid"`, 30) + "," + seriesJSON(`"type":"forbidden"`, 0)})
	e, err := ReadErrors(t.Context(), s, p, time.Now().Add(-time.Hour))
	if err != nil || len(e.Kinds) != 2 || e.Other != 2 || len(e.Codes) != 2 {
		t.Fatalf("%+v, %v", e, err)
	}
	if k := e.Kinds[0]; k.Count != 2 || k.Example != "timeout" || k.First.Hour() != 1 || k.Last.Hour() != 2 {
		t.Errorf("%+v", k)
	}
	expectContains(t, e.String(), "2 kinds of errors and warnings", "the log can't be written", "2 other lines", "internal", "30")
	if e, err = ReadErrors(t.Context(), s, unreachablePrometheus(t), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	expectContains(t, e.String(), "The errors sent to clients are unknown: Prometheus at http://127.0.0.1:1 does not answer", "--prometheus names another address")
	s.err = errors.New("docker is away")
	if _, err := ReadErrors(t.Context(), s, nil, time.Now()); err == nil || !strings.Contains(err.Error(), "docker is away") {
		t.Errorf("%v", err)
	}
}

// A log with more kinds of errors than are kept apart still counts every line.
func TestLinesBeyondTheKindsOfErrorsAreCounted(t *testing.T) {
	var b strings.Builder
	for i := range 1003 { // 3 over the 1,000 kinds that are kept apart
		fmt.Fprintf(&b, `{"time":"2026-11-26T01:00:00Z","level":"WARN","msg":"kind %d"}`+"\n", i)
	}
	e, err := ReadErrors(t.Context(), &fakeStack{t: t, log: b.String() + "panic: runtime error\n"}, nil, time.Now().Add(-time.Hour))
	if err != nil || len(e.Kinds) != 1000 || e.Other != 4 {
		t.Fatalf("%d kinds and %d other lines, %v; want 1000 and 4", len(e.Kinds), e.Other, err)
	}
	expectContains(t, e.String(), "4 other lines")
}

func TestConnectionsAreSummarizedByAddress(t *testing.T) {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, `{"time":"2026-11-26T01:00:00Z","level":"INFO","msg":"connection ended","code":%d,"reason":"%s","remote":"10.0.0.%d","duration":"%ds"}`+"\n",
			[]int{1000, 4208}[i%2], []string{"client", "slow"}[i%2], i%20, i)
	}
	p := fakePrometheus(t, map[string]string{"websocket_active": seriesJSON("", 7), "websocket_connections_total": seriesJSON(`"result":"ok"`, 99)})
	c, err := ReadConnections(t.Context(), &fakeStack{t: t, log: b.String()}, p, time.Now().Add(-10*time.Minute))
	if err != nil || c.Ended != 100 || c.AddressCount != 20 || len(c.Addresses) != topAddresses || c.Lifetimes != [3]time.Duration{10 * time.Second, 50 * time.Second, 90 * time.Second} {
		t.Fatalf("%+v, %v", c, err)
	}
	expectContains(t, c.String(), "7 are open", "Handshakes: ok 99.", "Reasons: client 50, slow 50.", "Close codes: 1000 50, 4208 50.", "10.0.0.1 ")
	if got, want := c.Addresses[1], (AddressStats{Address: "10.0.0.1", Ended: 5, Short: 1, Slow: 5, TopReason: "slow"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestQueriesOfARunningPostgres(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t, "shared_preload_libraries=''")
	s := &fakeStack{t: t, pg: pg}
	pg.Exec("CREATE TABLE rooms (id int)", "INSERT INTO rooms SELECT generate_series(1, 100)")
	q, err := ReadQueries(t.Context(), s)
	if err != nil || q.StatisticsSince != "" || len(q.Tables) != 1 {
		t.Fatalf("%+v, %v", q, err)
	}
	expectContains(t, q.String(), "Statements are not counted on postgres: shared_preload_libraries lacks", "No statement has run for longer than a second", "rooms")
	pg.Exec("ALTER SYSTEM SET shared_preload_libraries = pg_stat_statements")
	pg.Stop()
	pg.Start()
	if q, err = ReadQueries(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	expectContains(t, q.String(), "the database lacks the extension: docker compose exec postgres psql -U postgres -d "+pg.Database()+" -c 'CREATE EXTENSION pg_stat_statements'")
	pg.Exec("CREATE EXTENSION pg_stat_statements", "SELECT count(*) FROM rooms")
	ctx, cancel := context.WithCancel(t.Context())
	slept := make(chan error, 1)
	go func() {
		slept <- s.Run(ctx, stack.PostgresService, stack.Program{Args: []string{"psql", "-c", "BEGIN", "-c", "LOCK TABLE rooms", "-c", "SELECT pg_sleep(600)"}, Stdout: new(strings.Builder)})
	}()
	testkit.Eventually(t, "the locked statement to have run for a second", func() bool {
		q, err = ReadQueries(t.Context(), s)
		return err == nil && len(q.Running) > 0
	})
	cancel()
	<-slept
	expectContains(t, q.String(), "Statements on postgres since", "SELECT count(*) FROM rooms", "pg_sleep", "Statements that have run for longer than a second")
	if _, err := ReadQueries(t.Context(), &fakeStack{t: t}); err == nil || !strings.Contains(err.Error(), "no PostgreSQL that takes writes can be reached") {
		t.Errorf("%v", err)
	}
}

func TestHeapBytesAreSummedByFunction(t *testing.T) {
	function := func(name string) profile.Line { return profile.Line{Function: &profile.Function{Name: name}} }
	at := func(lines ...profile.Line) *profile.Location { return &profile.Location{Line: lines} }
	buffer, upgrade := function("bufio.NewReader"), function("switchyard/internal/http.(*Server).upgrade")
	b := heapProfile(t, []string{"alloc_objects", "alloc_space", "inuse_objects", "inuse_space"},
		&profile.Sample{Value: []int64{2, 200, 1, 100}, Location: []*profile.Location{at(buffer), at(upgrade)}},
		&profile.Sample{Value: []int64{2, 200, 1, 300}, Location: []*profile.Location{at(function("runtime.malg"))}},
		// bufio.NewReader is inlined.
		&profile.Sample{Value: []int64{2, 200, 1, 200}, Location: []*profile.Location{at(buffer, upgrade), at(function("switchyard/internal/http.serve"))}},
		&profile.Sample{Value: []int64{2, 200, 0, 0}, Location: []*profile.Location{at(function("freed"))}},
		&profile.Sample{Value: []int64{1, 50, 1, 50}},
	)
	total, sites, err := parseHeap(b)
	if err != nil || total != 650 || len(sites) != 3 || sites[2] != (AllocationSite{"unknown", 50, 1}) {
		t.Fatalf("%d, %+v, %v", total, sites, err)
	}
	if s := sites[0]; s.Bytes != 300 || sites[1].Bytes != 300 || sites[0].Function != "runtime.malg" || sites[1].Objects != 2 {
		t.Errorf("%+v", sites)
	}
	for what, bad := range map[string][]byte{
		"nothing": nil, "another page": []byte("404 page not found"), "half a profile": b[:len(b)/2],
		"another profile": heapProfile(t, []string{"contentions", "delay"}, &profile.Sample{Value: []int64{1, 50}}),
	} {
		if _, _, err := parseHeap(bad); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

// heapProfile encodes a profile. It numbers the locations and functions.
func heapProfile(t *testing.T, types []string, samples ...*profile.Sample) []byte {
	t.Helper()
	p := &profile.Profile{Sample: samples}
	for _, name := range types {
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: name, Unit: "count"})
	}
	for _, s := range samples {
		for _, l := range s.Location {
			p.Location = append(p.Location, l)
			l.ID = uint64(len(p.Location))
			for _, line := range l.Line {
				if line.Function.ID == 0 {
					p.Function = append(p.Function, line.Function)
					line.Function.ID = uint64(len(p.Function))
				}
			}
		}
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
