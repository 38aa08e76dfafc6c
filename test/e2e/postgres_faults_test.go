package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// timingSlack is added to each documented bound: this machine may be busy with other
// things.
const timingSlack = 4 * time.Second

// behindProxy returns a proxy in front of PostgreSQL, and the settings of a node
// that reaches its database through it.
func behindProxy(t *testing.T, pg *testkit.PG) (*testkit.Proxy, map[string]string) {
	t.Helper()
	host := fmt.Sprintf("127.0.0.1:%d", pg.Port())
	proxy := testkit.NewProxy(t, host)
	return proxy, map[string]string{
		"DATABASE_URL": strings.Replace(pg.URL(), host, proxy.Addr(), 1), "API_KEYS": "shop:" + apiKey,
	}
}

// publish sends a publish and returns its answer, an ack or an error, and the time
// until it came.
func (c *rawClient) publish(room, id string) (map[string]any, time.Duration) {
	c.t.Helper()
	began := time.Now()
	c.send(fmt.Sprintf(`{"type":"publish","room":%q,"id":%q,"data":%q}`, room, id, id))
	for {
		if got := c.readUntil("ack", "error"); got["id"] == id {
			return got, time.Since(began)
		}
	}
}

// publishUntilAcked sends a publish with an id until it is acked.
func (c *rawClient) publishUntilAcked(room, id string) map[string]any {
	c.t.Helper()
	for began := time.Now(); ; {
		got, _ := c.publish(room, id)
		if got["type"] == "ack" {
			return got
		}
		if got["code"] != "unavailable" || time.Since(began) > testkit.Timeout {
			c.t.Fatalf("%s: %v", id, got)
		}
	}
}

// storedIDs returns the ids of a room's stored messages, in the order of their seqs.
func storedIDs(pg *testkit.PG, room string) string {
	return pg.Query(`SELECT coalesce(string_agg(m.id, ' ' ORDER BY m.seq), '') FROM messages m
		JOIN rooms r ON r.id = m.room_id WHERE r.name = '` + room + `'`)
}

// Whatever is wrong with PostgreSQL, a publisher gets `unavailable` in time and keeps
// its socket, the node is unready, and both recover by themselves. Each case takes the
// five seconds until a node is unready, so that the short form has two of four: a
// connection that is silent, and a server that is gone. `make faults` runs all.
func TestPublishersGetUnavailableWhilePostgreSQLFails(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name         string
		longOnly     bool
		ownsServer   bool // the fault stops PostgreSQL itself
		inject, undo func(*testkit.Proxy, *testkit.PG)
		tookEffect   func(testkit.FaultCounts) bool
	}{
		{"slow", true, false, func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(3 * time.Second) }, func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(0) },
			func(c testkit.FaultCounts) bool { return c.Delayed > 0 }},
		{"stalled", false, false, func(p *testkit.Proxy, _ *testkit.PG) { p.Stall() }, func(p *testkit.Proxy, _ *testkit.PG) { p.Resume() },
			func(c testkit.FaultCounts) bool { return c.Stalled > 0 }},
		{"stopped", false, true, func(_ *testkit.Proxy, pg *testkit.PG) { pg.Stop() }, func(_ *testkit.Proxy, pg *testkit.PG) { pg.Start() },
			func(testkit.FaultCounts) bool { return true }},
		{"refused", true, false, func(p *testkit.Proxy, _ *testkit.PG) { p.Refuse(true); p.Cut() }, func(p *testkit.Proxy, _ *testkit.PG) { p.Refuse(false) },
			func(c testkit.FaultCounts) bool { return c.Cut > 0 && c.Refused > 0 }},
	} {
		if fault.longOnly && !*longFaults {
			continue
		}
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			pg := testkit.Postgres(t)
			if fault.ownsServer {
				pg = testkit.StartPostgres(t)
			}
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
					t.Errorf("a publisher receives %v", got)
				}
				if took > 2500*time.Millisecond+timingSlack {
					t.Errorf("the answer took %v, the bound is 2.5 s", took)
				}
			}
			if res, problem := post(t, s, "/v1/rooms/room/messages", `{"data":2,"id":"meanwhile-2"}`); res.StatusCode != http.StatusServiceUnavailable ||
				res.Header.Get("Retry-After") == "" || !strings.Contains(problem, `"code":"unavailable"`) {
				t.Errorf("a backend receives %s %s", res.Status, problem)
			}
			pollPage(t, "the node to be unready", func() bool {
				status, body := readiness(t, s)
				return status == http.StatusServiceUnavailable && strings.Contains(body, `"log":"down"`)
			})
			if took := time.Since(began); took < 3*time.Second || took > 6*time.Second+2*timingSlack {
				t.Errorf("unready after %v, want 5 s", took)
			}
			if got := testkit.Get(t, s.URL()+"/healthz"); !strings.Contains(got, `"ok"`) {
				t.Errorf("/healthz says %s: an operator's system would restart the node", got)
			}
			if !fault.tookEffect(proxy.FaultCounts()) {
				t.Fatalf("the fault had no effect: %+v", proxy.FaultCounts())
			}

			fault.undo(proxy, pg)
			pollPage(t, "the node to be ready again", func() bool { status, _ := readiness(t, s); return status == http.StatusOK })
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

// Publishes are only delayed while PostgreSQL answers late but in time, and when it
// restarts at once.
func TestShortPostgreSQLFaultsOnlyDelayPublishers(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name       string
		ownsServer bool // the fault restarts PostgreSQL itself
		inject     func(*testkit.Proxy, *testkit.PG)
	}{
		{"slow", false, func(p *testkit.Proxy, _ *testkit.PG) { p.Delay(100 * time.Millisecond) }},
		{"restarted at once", true, func(_ *testkit.Proxy, pg *testkit.PG) { pg.Crash(); pg.Start() }},
		{"connections cut", false, func(p *testkit.Proxy, _ *testkit.PG) { p.Cut() }},
		{"half closed", false, func(p *testkit.Proxy, _ *testkit.PG) { p.HalfClose() }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			pg := testkit.Postgres(t)
			if fault.ownsServer {
				pg = testkit.StartPostgres(t)
			}
			proxy, env := behindProxy(t, pg)
			env["APPEND_TIMEOUT"] = "30s"
			s := testkit.StartServer(t, env)
			w := dialRaw(t, s)
			w.publishUntilAcked("room", "0")
			var sent bytes.Buffer
			sent.WriteString("0")
			// Twenty publishes are under way when the fault happens.
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

// Publishers go on while PostgreSQL is stalled. Pending publishes have two bounds:
// MAX_INFLIGHT for each connection, which is then not read any further, and 32,768
// for the node, which refuses more at once. No pending publish is lost. `make faults`
// reaches both bounds; the short form only that of ten connections.
func TestPendingPublishesAreBoundedWhilePostgreSQLStalls(t *testing.T) {
	t.Parallel()
	const (
		each       = 256
		maxPending = 32768 // of the node
	)
	sockets := 10
	if *longFaults {
		sockets = 130 // 512 publishes more than may be pending
	}
	wantPending := min(sockets*each, maxPending) // a publish less for each socket may be pending at the time
	refuses := sockets*each > maxPending
	pg := testkit.Postgres(t)
	proxy, env := behindProxy(t, pg)
	env["APPEND_TIMEOUT"], env["MAX_INFLIGHT"], env["HEARTBEAT"] = "1m", fmt.Sprint(each), "5m"
	env["SESSION_TTL"] = "15m" // over twice the heartbeat
	s := testkit.StartServer(t, env)
	clients := make([]*rawClient, sockets)
	var opening sync.WaitGroup
	for i := range clients {
		clients[i] = dialRaw(t, s)
		opening.Go(func() { clients[i].publishUntilAcked("room-"+fmt.Sprint(i), "first") })
	}
	opening.Wait()
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
	pollPage(t, "as many publishes as may be pending", func() bool {
		pending := metric(t, s, "store_pending_messages")
		most = max(most, pending)
		return (metric(t, s, `store_failed_total{reason="pending"}`) > 0 || !refuses) && pending > float64(wantPending-sockets)
	})
	for until := time.Now().Add(time.Second); time.Now().Before(until); <-time.After(pagePollInterval) {
		most = max(most, metric(t, s, "store_pending_messages"))
	}
	if most > float64(wantPending+sockets) { // each may be counted for a moment before it is refused
		t.Errorf("%v publishes are pending", most)
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
	if acked.Load() < int64(wantPending-sockets) || (refused.Load() > 0) != refuses || acked.Load()+refused.Load() != int64(sockets*(each+10)) {
		t.Errorf("%d acked, %d refused", acked.Load(), refused.Load())
	}
	pollPage(t, "no pending publishes but a canary", func() bool { return metric(t, s, "store_pending_messages") <= 1 })
	if got := pg.Query(`SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name LIKE 'room-%'`); got != fmt.Sprint(acked.Load()+int64(sockets)) {
		t.Errorf("%s are stored, %d were acked", got, acked.Load()+int64(sockets))
	}
}
