package release

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

const apiKey = "a-key-of-the-tests-only"

// A serverPair is a server of an earlier release and one of this release, on one PostgreSQL and
// one Redis. The schema is newer than either server knows.
type serverPair struct {
	old, current *testkit.Server
	redis        *testkit.RedisServer
	env          map[string]string
}

// startServerPair deploys this release beside an earlier one: the earlier one runs, and
// before is called; then this release migrates the database, migrateToFuture stands
// for a later release that migrates it further, and this release's server starts.
func startServerPair(t *testing.T, r *release, before func(old *testkit.Server)) *serverPair {
	t.Helper()
	pg, redis := testkit.Postgres(t), testkit.StartRedis(t)
	p := &serverPair{redis: redis, env: map[string]string{
		"DATABASE_URL": pg.URL(), "REDIS_URL": redis.URL(), "API_KEYS": "test:" + apiKey,
	}}
	p.old = testkit.StartServerProgram(t, r.server(t), p.env)
	before(p.old)
	migrate(t, pg.URL())
	migrateToFuture(t, pg.URL(), "later")
	p.current = testkit.StartServer(t, p.env)
	for _, s := range []*testkit.Server{p.old, p.current} {
		testkit.Eventually(t, "the broker to be up", func() bool { return metric(t, s, "broker_up") == "1" })
	}
	return p
}

func TestBothReleasesServeTheSameRooms(t *testing.T) {
	const each = 100
	eachRelease(t, func(t *testing.T, r *release) {
		var acks ackLog
		var early *roomClient
		p := startServerPair(t, r, func(old *testkit.Server) {
			early = joinRoom(t, "lobby", old)
			for i := range 5 {
				early.publish(&acks, fmt.Sprintf("early-%d", i))
			}
		})
		late := joinRoom(t, "lobby", p.current)
		if was, is := early.client.Welcome().Version, late.client.Welcome().Version; was != r.name || is == r.name {
			t.Fatalf("served by %s and %s", was, is)
		}
		var publishing sync.WaitGroup
		for name, c := range map[string]*roomClient{"early": early, "late": late} {
			publishing.Go(func() {
				for i := range each {
					c.publish(&acks, fmt.Sprintf("%s-%d", name, 100+i))
				}
			})
		}
		publishing.Wait()
		assertIDsShared(t, p, &acks)
		assertSignalsCross(t, early, late)
		for _, path := range []string{"?limit=200", "?after=0&limit=7", "?before=9&limit=3"} {
			if old, current := historyPage(t, p.old, path), historyPage(t, p.current, path); old != current {
				t.Errorf("history %s:\nold     %s\ncurrent %s", path, old, current)
			}
		}
		for _, s := range []*testkit.Server{p.old, p.current} {
			if n := metric(t, s, "hub_malformed_payloads_total"); n != "0" {
				t.Errorf("%s payloads were malformed", n)
			}
		}
		acks.check("the client from before the deploy", early)
		acks.check("the client from after the deploy", late)
	})
}

// assertIDsShared checks that both servers share ids: in publishes at the same time, one
// after the other, and with other data. It publishes over HTTP, since a client in the
// room takes the delivered message for its ack.
func assertIDsShared(t *testing.T, p *serverPair, acks *ackLog) {
	t.Helper()
	both := []*testkit.Server{p.old, p.current}
	for i := range 20 {
		id := fmt.Sprintf("both-%d", i)
		var status [2]int
		var seq [2]message.Seq
		var racing sync.WaitGroup
		for j, s := range both {
			racing.Go(func() { status[j], seq[j] = post(t, s, id, id) })
		}
		racing.Wait()
		acks.record(id, seq[0])
		if seq[0] != seq[1] || status[0]+status[1] != http.StatusCreated+http.StatusOK {
			t.Errorf("%s at two servers: status %v, seq %v", id, status, seq)
		}
	}
	for i, first := range both {
		id, second := fmt.Sprintf("once-%d", i), both[1-i]
		created, seq := post(t, first, id, id)
		acks.record(id, seq)
		if again, same := post(t, second, id, id); created != http.StatusCreated || again != http.StatusOK || same != seq {
			t.Errorf("%s: status %d with seq %d, then %d with %d", id, created, seq, again, same)
		}
		if other, _ := post(t, second, id, "other data"); other != http.StatusConflict {
			t.Errorf("%s with other data: status %d", id, other)
		}
	}
}

// post publishes to lobby over HTTP.
func post(t *testing.T, s *testkit.Server, id, data string) (int, message.Seq) {
	t.Helper()
	body := strings.NewReader(fmt.Sprintf(`{"id":%q,"data":%q}`, id, data))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/v1/rooms/lobby/messages", body)
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	req.Close = true
	req.Header.Set("Authorization", "Bearer "+apiKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer res.Body.Close()
	var ack struct{ Seq message.Seq }
	if err := json.NewDecoder(res.Body).Decode(&ack); err != nil {
		t.Error(err)
	}
	return res.StatusCode, ack.Seq
}

// assertSignalsCross checks that each server reads the other's broadcasts: only the
// broker carries signals.
func assertSignalsCross(t *testing.T, a, b *roomClient) {
	t.Helper()
	for from, to := range map[*roomClient]*roomClient{a: b, b: a} {
		text := fmt.Sprintf(`"from %p"`, from)
		testkit.Eventually(t, "the signal at the other server", func() bool {
			if err := from.client.Signal(from.room, json.RawMessage(text)); err != nil {
				t.Error(err)
			}
			return to.hasSignal(text)
		})
	}
}

// historyPage returns the fields of a page of lobby that both releases have.
func historyPage(t *testing.T, s *testkit.Server, query string) string {
	t.Helper()
	var page struct {
		Head, First message.Seq
		More        bool
		Messages    []struct {
			Seq             message.Seq
			Epoch, ID, From string
			At              string
			Data            json.RawMessage
		}
	}
	body := get(t, s.URL()+"/v1/rooms/lobby/messages"+query)
	if err := json.Unmarshal([]byte(body), &page); err != nil || len(page.Messages) == 0 {
		t.Fatalf("%v: %s", err, body)
	}
	return fmt.Sprint(page)
}

// Clients move with a deploy, its rollback and a second deploy, while they publish.
func TestClientsMoveBetweenReleases(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		p := startServerPair(t, r, func(*testkit.Server) {})
		const movers = 5
		var acks ackLog
		var clients []*roomClient
		for i := range movers {
			clients = append(clients, joinRoom(t, "lobby", [][]*testkit.Server{{p.old, p.current}, {p.current, p.old}}[i%2]...))
		}
		stopping := make(chan struct{})
		var publishing sync.WaitGroup
		for i, c := range clients {
			publishing.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stopping:
						return
					default:
						c.publish(&acks, fmt.Sprintf("client%d-%d", i, n))
					}
				}
			})
		}
		moveAll := func(from, to *testkit.Server, version func(string) bool) {
			before := acks.size()
			testkit.Eventually(t, "50 publishes", func() bool { return acks.size() >= before+50 })
			if err := from.Stop(); err != nil {
				t.Errorf("stopped: %v\n%s", err, from.Output())
			}
			for _, c := range clients {
				testkit.Eventually(t, "every client on "+to.Addr, func() bool { return version(c.client.Welcome().Version) })
			}
			from.Restart()
		}
		moveAll(p.old, p.current, func(v string) bool { return v != r.name })
		moveAll(p.current, p.old, func(v string) bool { return v == r.name })
		moveAll(p.old, p.current, func(v string) bool { return v != r.name })
		close(stopping)
		publishing.Wait()
		for i, c := range clients {
			acks.check(fmt.Sprintf("client %d", i), c)
		}
		t.Logf("%d messages, %d movers, three moves", acks.size(), movers)
	})
}

// A later release may change the payload. Broadcasts of the other release are then
// lost, and every message comes from the log.
func TestUnreadablePayloadsAreCountedAndRepaired(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		p := startServerPair(t, r, func(*testkit.Server) {})
		// Servers without Redis broadcast nothing.
		noRedisEnv := map[string]string{}
		for name, value := range p.env {
			noRedisEnv[name] = value
		}
		noRedisEnv["REDIS_URL"] = ""
		noRedis := []*testkit.Server{testkit.StartServer(t, noRedisEnv), testkit.StartServerProgram(t, r.server(t), noRedisEnv)}

		var acks ackLog
		clients := []*roomClient{joinRoom(t, "lobby", p.old), joinRoom(t, "lobby", p.current), joinRoom(t, "lobby", noRedis[0]), joinRoom(t, "lobby", noRedis[1])}
		testkit.Eventually(t, "both servers to subscribe", func() bool {
			return strings.HasSuffix(p.redis.Do(t, "PUBSUB", "NUMSUB", "sy:lobby"), "2")
		})
		for i := range 10 {
			for _, payload := range []string{"\x02m of a later version", "\x01", ""} {
				if n := p.redis.Do(t, "PUBLISH", "sy:lobby", payload); n != "2" {
					t.Fatalf("%s servers are subscribed, want 2", n)
				}
			}
			for j, c := range clients {
				c.publish(&acks, fmt.Sprintf("client%d-%d", j, i))
			}
		}
		for _, s := range []*testkit.Server{p.old, p.current} {
			testkit.Eventually(t, "30 malformed payloads to be counted", func() bool { return metric(t, s, "hub_malformed_payloads_total") == "30" })
			if strings.Contains(s.Output(), "panic") {
				t.Errorf("a panic:\n%s", s.Output())
			}
		}
		for i, c := range clients {
			acks.check(fmt.Sprintf("client %d", i), c)
		}
	})
}
