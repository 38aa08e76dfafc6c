package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// timingSlack is added to each bound that is told to users: this machine may be busy
// with other things.
const timingSlack = 4 * time.Second

const apiKey = "a-long-random-secret"

// behindProxy returns settings with which a node reaches PostgreSQL through a
// proxy of its own.
func behindProxy(t *testing.T, pg *testkit.PG) (*testkit.Proxy, map[string]string) {
	t.Helper()
	host := fmt.Sprintf("127.0.0.1:%d", pg.Port())
	proxy := testkit.NewProxy(t, host)
	return proxy, map[string]string{
		"DATABASE_URL": strings.Replace(pg.URL(), host, proxy.Addr(), 1), "API_KEYS": "shop:" + apiKey,
	}
}

// publish sends a publish and returns its answer, an ack or an error, and how
// long that took.
func (s *rawClient) publish(room, id string) (map[string]any, time.Duration) {
	s.t.Helper()
	began := time.Now()
	s.send(fmt.Sprintf(`{"type":"publish","room":%q,"id":%q,"data":%q}`, room, id, id))
	for {
		if got := s.readUntil("ack", "error"); got["id"] == id {
			return got, time.Since(began)
		}
	}
}

// publishUntilAcked publishes under an id until it is acked.
func (s *rawClient) publishUntilAcked(room, id string) map[string]any {
	s.t.Helper()
	for began := time.Now(); ; {
		got, _ := s.publish(room, id)
		if got["type"] == "ack" {
			return got
		}
		if got["code"] != "unavailable" || time.Since(began) > time.Minute {
			s.t.Fatalf("%s: %v", id, got)
		}
	}
}

// post makes a server call.
func post(t *testing.T, s *testkit.Server, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	req.Header.Set("Authorization", "Bearer "+apiKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(answer)
}

// storedIDs returns the ids of a room in the order of seq, as the database has them.
func storedIDs(pg *testkit.PG, room string) string {
	return pg.Query(`SELECT coalesce(string_agg(m.id, ' ' ORDER BY m.seq), '') FROM messages m
		JOIN rooms r ON r.id = m.room_id WHERE r.name = '` + room + `'`)
}

// Whatever is wrong with PostgreSQL: who publishes is told in time and keeps
// the socket, the node says that it is not ready, and all comes back by itself.
func TestPublishersGetUnavailableWhilePostgreSQLFails(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name         string
		inject, undo func(*testkit.Proxy, *testkit.PG)
		tookEffect   func(testkit.FaultCounts) bool
	}{
		{"slow", func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(3 * time.Second) }, func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(0) },
			func(h testkit.FaultCounts) bool { return h.Delayed > 0 }},
		{"stalled", func(p *testkit.Proxy, _ *testkit.PG) { p.Stall() }, func(p *testkit.Proxy, _ *testkit.PG) { p.Resume() },
			func(h testkit.FaultCounts) bool { return h.Stalled > 0 }},
		{"gone", func(_ *testkit.Proxy, pg *testkit.PG) { pg.Stop() }, func(_ *testkit.Proxy, pg *testkit.PG) { pg.Start() },
			func(testkit.FaultCounts) bool { return true }},
		{"refused", func(p *testkit.Proxy, _ *testkit.PG) { p.Refuse(true); p.Cut() }, func(p *testkit.Proxy, _ *testkit.PG) { p.Refuse(false) },
			func(h testkit.FaultCounts) bool { return h.Cut > 0 && h.Refused > 0 }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			pg := testkit.StartPostgres(t)
			proxy, env := behindProxy(t, pg)
			env["APPEND_TIMEOUT"] = "2s"
			s := testkit.StartServer(t, env)
			w := dialRaw(t, s)
			w.publishUntilAcked("room", "before")

			fault.inject(proxy, pg)
			began := time.Now()
			for i := range 2 {
				got, took := w.publish("room", fmt.Sprint("meanwhile-", i))
				wait, _ := got["retry_after_ms"].(json.Number)
				if ms, err := wait.Int64(); got["code"] != "unavailable" || err != nil || ms < 100 {
					t.Errorf("a publisher is told %v", got)
				}
				if took > 2500*time.Millisecond+timingSlack {
					t.Errorf("the answer took %v, the bound is 2.5 s", took)
				}
			}
			if res, problem := post(t, s, "/v1/rooms/room/messages", `{"data":2,"id":"meanwhile-2"}`); res.StatusCode != http.StatusServiceUnavailable ||
				res.Header.Get("Retry-After") == "" || !strings.Contains(problem, `"code":"unavailable"`) {
				t.Errorf("a backend is told %s %s", res.Status, problem)
			}
			eventually(t, "not ready", func() bool {
				status, body := readiness(t, s)
				return status == http.StatusServiceUnavailable && strings.Contains(body, `"log":"down"`)
			})
			if took := time.Since(began); took < 3*time.Second || took > 6*time.Second+2*timingSlack {
				t.Errorf("not ready after %v, want 5 s", took)
			}
			if got := get(t, s.URL()+"/healthz"); !strings.Contains(got, `"ok"`) {
				t.Errorf("/healthz says %s: somebody would restart the node", got)
			}
			if !fault.tookEffect(proxy.FaultCounts()) {
				t.Fatalf("there was no trouble: %+v", proxy.FaultCounts())
			}

			fault.undo(proxy, pg)
			eventually(t, "ready again", func() bool { status, _ := readiness(t, s); return status == http.StatusOK })
			for i := range 2 { // on the same socket
				w.publishUntilAcked("room", fmt.Sprint("meanwhile-", i))
			}
			w.publishUntilAcked("room", "after")
			if got := strings.Fields(storedIDs(pg, "room")); len(got) < 4 || len(got) > 5 || got[0] != "before" || got[len(got)-1] != "after" {
				t.Errorf("stored is %v", got)
			}
		})
	}
}

// eventually waits for what has no bound that users are told.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// A PostgreSQL that answers late, but in time, is no reason to refuse anybody;
// nor is one that restarts at once.
func TestShortPostgreSQLFaultsOnlyDelayPublishers(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name   string
		inject func(*testkit.Proxy, *testkit.PG)
	}{
		{"slow", func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(100 * time.Millisecond) }},
		{"restarted at once", func(_ *testkit.Proxy, pg *testkit.PG) { pg.Crash(); pg.Start() }},
		{"connections cut", func(p *testkit.Proxy, _ *testkit.PG) { p.Cut() }},
		{"half closed", func(p *testkit.Proxy, _ *testkit.PG) { p.HalfClose() }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			pg := testkit.StartPostgres(t)
			proxy, env := behindProxy(t, pg)
			env["APPEND_TIMEOUT"] = "30s"
			s := testkit.StartServer(t, env)
			w := dialRaw(t, s)
			w.publishUntilAcked("room", "0")
			var sent bytes.Buffer
			sent.WriteString("0")
			// Twenty are under way when it happens, each behind the one before.
			for i := 1; i <= 20; i++ {
				fmt.Fprintf(&sent, " %d", i)
				w.send(fmt.Sprintf(`{"type":"publish","room":"room","id":"%d","data":0}`, i))
			}
			fault.inject(proxy, pg)
			for i := 21; i <= 40; i++ {
				fmt.Fprintf(&sent, " %d", i)
				w.send(fmt.Sprintf(`{"type":"publish","room":"room","id":"%d","data":0}`, i))
			}
			for i := 1; i <= 40; i++ {
				if got := w.readUntil("ack", "error"); got["id"] != fmt.Sprint(i) || got["seq"] != json.Number(fmt.Sprint(i+1)) {
					t.Fatalf("answer %d is %v", i, got)
				}
			}
			if got := storedIDs(pg, "room"); got != sent.String() {
				t.Errorf("stored is %s", got)
			}
		})
	}
}

// While PostgreSQL is stalled, publishers go on and on. What waits for it is
// bounded twice: MAX_INFLIGHT for each connection, which is then read no
// further, and 32,768 publications for the node; what is beyond is refused at
// once. Nothing that waited is lost.
func TestPendingPublishesAreBoundedWhilePostgreSQLStalls(t *testing.T) {
	const (
		sockets  = 150
		each     = 256 // and so many more than may wait
		maxWait  = 32768
		interval = 50 * time.Millisecond
	)
	pg := testkit.StartPostgres(t)
	proxy, env := behindProxy(t, pg)
	env["APPEND_TIMEOUT"], env["MAX_INFLIGHT"], env["HEARTBEAT"] = "1m", fmt.Sprint(each), "5m"
	env["SESSION_TTL"] = "15m" // over twice that
	s := testkit.StartServer(t, env)
	clients := make([]*rawClient, sockets)
	for i := range clients {
		clients[i] = dialRaw(t, s)
		clients[i].publishUntilAcked("room-"+fmt.Sprint(i), "first")
	}
	proxy.Stall()
	var sending, reading sync.WaitGroup
	var acked, refused atomic.Int64
	for i, w := range clients {
		sending.Go(func() {
			for n := range each + 10 {
				w.send(fmt.Sprintf(`{"type":"publish","room":"room-%d","id":"%d","data":0}`, i, n))
			}
		})
	}
	most := 0.0
	eventually(t, "more than may wait", func() bool {
		waiting := metric(t, s, "store_pending_messages")
		most = max(most, waiting)
		return metric(t, s, `store_failed_total{reason="pending"}`) > 0 && waiting > maxWait-sockets
	})
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); <-time.After(interval) {
		most = max(most, metric(t, s, "store_pending_messages"))
	}
	if most > maxWait+sockets { // each may be counted for a moment before it is refused
		t.Errorf("%v publications wait", most)
	}
	proxy.Resume()
	for _, w := range clients {
		reading.Go(func() {
			for range each + 10 {
				if got := w.readUntil("ack", "error"); got["type"] == "ack" {
					acked.Add(1)
				} else if got["code"] == "unavailable" && got["retry_after_ms"] != nil {
					refused.Add(1)
				} else {
					t.Errorf("got %v", got)
				}
			}
		})
	}
	sending.Wait()
	reading.Wait()
	if acked.Load() < maxWait-sockets || refused.Load() == 0 || acked.Load()+refused.Load() != sockets*(each+10) {
		t.Errorf("%d acked, %d refused", acked.Load(), refused.Load())
	}
	eventually(t, "nothing to wait", func() bool { return metric(t, s, "store_pending_messages") <= 1 }) // a canary
	if got := pg.Query(`SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name LIKE 'room-%'`); got != fmt.Sprint(acked.Load()+sockets) {
		t.Errorf("%s are stored, %d were acked", got, acked.Load()+sockets)
	}
}

// metric returns the value of one series, 0 when there is none.
func metric(t *testing.T, s *testkit.Server, series string) float64 {
	t.Helper()
	return parseMetric(get(t, s.URL()+"/metrics"), series)
}

// parseMetric finds a series in what /metrics says.
func parseMetric(metrics, series string) float64 {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return f
		}
	}
	return 0
}
