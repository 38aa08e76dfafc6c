package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// A station is a node, and the three lines that may be harmed: those of its
// clients to it, and its own to Redis and to PostgreSQL.
type station struct {
	*testkit.Server
	clients, redis, postgres *testkit.Proxy
	wanted                   bool // not killed, or to be started again
}

// A fleet is some nodes on one PostgreSQL and one Redis, with a crowd on them.
// Its methods belong to the test's goroutine.
type fleet struct {
	t        *testing.T
	dice     *rand.Rand
	stations []*station
	pg       *testkit.PG
	broker   *testkit.RedisServer
	crowd    *gathering

	holder    *pgx.Conn // its transaction holds a room
	waitedFor bool      // and somebody waited for that
}

// launchFleet starts so many nodes. Redis may be down.
func launchFleet(t *testing.T, dice *rand.Rand, nodes int, broker *testkit.RedisServer) *fleet {
	t.Helper()
	f := &fleet{t: t, dice: dice, pg: testkit.StartPostgres(t), broker: broker}
	host := fmt.Sprintf("127.0.0.1:%d", f.pg.Port())
	for range nodes {
		s := &station{postgres: testkit.NewProxy(t, host), redis: testkit.NewProxy(t, broker.Addr()), wanted: true}
		s.Server = testkit.StartServer(t, map[string]string{
			"DATABASE_URL": strings.Replace(f.pg.URL(), host, s.postgres.Addr(), 1),
			"REDIS_URL":    "redis://" + s.redis.Addr(),
			"HEARTBEAT":    "2s",
			"API_KEYS":     "test:" + apiKey,
		})
		s.clients = testkit.NewProxy(t, s.Addr)
		f.stations = append(f.stations, s)
	}
	t.Cleanup(f.explain)
	return f
}

// explain shows what the nodes have to say when a test has failed.
func (f *fleet) explain() {
	if !f.t.Failed() {
		return
	}
	for i, s := range f.stations {
		out := s.Output()
		f.t.Logf("node %d at %s, process %q, wanted %v, ready: %s\n…%s", i, s.Addr, s.State(), s.wanted, s.ask("/readyz"), out[max(0, len(out)-4000):])
	}
}

// ask returns what a GET answers with, or why there was no answer within a second.
func (s *station) ask(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// entertain brings a crowd, whose members reach the nodes through the proxies.
func (f *fleet) entertain(rooms, rate, size int) {
	f.t.Helper()
	what := traffic{rooms: rooms, rate: rate, size: size}
	for _, s := range f.stations {
		what.urls = append(what.urls, "ws://"+s.clients.Addr()+"/ws")
	}
	f.crowd = gather(f.t, f.dice, what)
}

// busiest returns the station with the most clients.
func (f *fleet) busiest() *station {
	best := f.stations[0]
	for _, s := range f.stations[1:] {
		if s.clients.Connections() > best.clients.Connections() {
			best = s
		}
	}
	return best
}

// any returns a station with clients.
func (f *fleet) any() *station {
	for _, i := range f.dice.Perm(len(f.stations)) {
		if f.stations[i].clients.Connections() > 0 {
			return f.stations[i]
		}
	}
	return f.stations[0]
}

// spread tells how many clients each node has.
func (f *fleet) spread() []int {
	var n []int
	for _, s := range f.stations {
		n = append(n, s.clients.Connections())
	}
	return n
}

// supervise starts the nodes again that ended by themselves: who is started
// while PostgreSQL is away can't go on.
func (f *fleet) supervise() {
	for _, s := range f.stations {
		if s.wanted && s.Ended() {
			s.Launch()
		}
	}
}

// pass lets time go by, and calls again, if there is one, all the while.
func (f *fleet) pass(d time.Duration, again func()) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(d); time.Now().Before(until); <-tick.C {
		if again != nil {
			again()
		}
		f.supervise()
	}
}

// wait is waitFor that supervises. A minute is far more than users should wait.
func (f *fleet) wait(what string, ok func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	waitFor(ctx, f.t, what, func() bool { f.supervise(); return ok() })
}

// recovers waits until every node is ready, every member hears what was stored
// from now on, and every publish of before is answered.
func (f *fleet) recovers() {
	f.t.Helper()
	now := time.Now()
	for _, s := range f.stations {
		f.wait("a node to be ready", func() bool {
			return !s.Ended() && strings.Contains(s.ask("/readyz"), `"status":"ready"`)
		})
	}
	waiting := "" // named when it is in vain
	defer func() {
		if waiting != "" {
			f.t.Logf("%s has heard nothing", waiting)
		}
	}()
	f.wait("everybody to hear again", func() bool { waiting = f.crowd.deaf(now); return waiting == "" })
	f.wait("all that was published before to be answered", func() bool { return !f.crowd.pauses.asking(now) })
}

// metric returns the value of one series. A node that does not answer in time,
// on a machine that is busy with other things, is asked again.
func (f *fleet) metric(s *station, series string) float64 {
	f.t.Helper()
	said := ""
	f.wait("a node to tell its metrics", func() bool {
		said = s.ask("/metrics")
		return strings.Contains(said, "switchyard_build_info")
	})
	return valueOf(said, series)
}

// feedRepairs is how often topics had to ask the log because only the commit
// feed knew of a message, on all nodes.
func (f *fleet) feedRepairs() (n float64) {
	for _, s := range f.stations {
		n += f.metric(s, `websocket_repairs_total{cause="feed"}`)
	}
	return n
}

// fastPath waits until messages come by the broker again: it is up for every
// node, Redis knows every node as a subscriber of every room, and for longer
// than two readings of the commit feed no topic had to go to the log, though
// messages were acked. On a machine that is busy with other things a message is
// late now and then, so that takes some patience.
func (f *fleet) fastPath() {
	f.t.Helper()
	for _, s := range f.stations {
		f.wait("the broker to be up", func() bool { return f.metric(s, "broker_up") == 1 })
	}
	for i := range f.crowd.rooms {
		room, all := fmt.Sprintf("sy:room-%d", i), fmt.Sprintf(" %d", len(f.stations))
		f.wait("every node to subscribe to "+room, func() bool {
			return strings.HasSuffix(f.broker.Do(f.t, "PUBSUB", "NUMSUB", room), all)
		})
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		acked, repairs := f.crowd.acks.Load(), f.feedRepairs()
		f.pass(600*time.Millisecond, nil)
		if f.feedRepairs() == repairs && f.crowd.acks.Load() > acked {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("the commit feed still carries messages: %v repairs in the last moment", f.feedRepairs()-repairs)
		}
	}
}
