package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// Two nodes, with Redis down when they start and then in every kind of trouble.
// Delivery goes on by the log all the while; when the trouble is over, messages
// come by the broker again, and the log is left alone.
func TestRedisInTrouble(t *testing.T) {
	t.Parallel()
	broker := testkit.StartRedis(t)
	broker.Stop()
	r := newFaultRun(launchFleet(t, rand.New(rand.NewPCG(1, 1)), 2, broker))
	r.entertain(6, 60, 20)
	r.goesByTheLog()
	t.Logf("down at the start: %v", r.crowd.pauses.take())
	broker.Restart()
	r.fastPath()
	for _, trouble := range []struct {
		kind  *kind
		lasts time.Duration
		byLog bool // it lasts long enough for everybody to notice
	}{
		{kindNamed(t, "Redis killed"), time.Second, true}, // and started again, empty
		{kindNamed(t, "Redis paused"), 4 * time.Second, true},
		{kindNamed(t, "line to Redis cut"), time.Second, true},
		{kindNamed(t, "line to Redis stalled"), 4 * time.Second, true}, // both ways, and no FIN
		{kindNamed(t, "line to Redis delayed"), time.Second, true},
		{kindNamed(t, "line to Redis half closed"), 200 * time.Millisecond, false},
		{r.smallOutputBuffer(), time.Second, false},
	} {
		before := r.feedRepairs()
		r.alone(trouble.kind, trouble.lasts)
		if trouble.byLog && r.feedRepairs() == before {
			t.Errorf("%s: nothing came by the log", trouble.kind.name)
		}
		r.fastPath()
		r.crowd.pauses.take()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if verdict := r.crowd.end(ctx, t); verdict.Verdict != load.Clean || verdict.Unknown > 0 || verdict.Gaps > 0 {
		t.Error(verdict)
	} else {
		t.Logf("%d acked, %d delivered", verdict.Acked, verdict.Delivered)
	}
}

// goesByTheLog waits until every member hears what is stored from now on, and
// sees to it that the broker has no part in it.
func (r *faultRun) goesByTheLog() {
	r.t.Helper()
	r.recovers()
	if r.feedRepairs() == 0 {
		r.t.Error("nothing came by the log")
	}
	for _, s := range r.stations {
		status, body := readiness(r.t, s.Server)
		if status != 200 || !strings.Contains(body, `"broker":"down"`) || r.metric(s, "broker_up") != 0 {
			r.t.Errorf("without Redis: %d %s", status, body)
		}
	}
}

func kindNamed(t *testing.T, name string) *kind {
	t.Helper()
	for _, k := range kinds() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("no kind of fault is called %q", name)
	return nil
}

// smallOutputBuffer has Redis cut every subscriber for whom anything waits
// beyond its first 16 KiB, which nobody can be denied. A backend sends messages
// of more than that to a room of its own, with members on every node: each of
// them alone is too much, however fast the nodes read.
func (r *faultRun) smallOutputBuffer() *kind {
	const cut = "overcoming of output buffer limits"
	message := `{"data":"` + strings.Repeat("x", 40<<10) + `"}`
	return &kind{
		name: "Redis' output buffer too small", harms: redisHost,
		do: func(f *fleet, _ *station) func() bool {
			for _, s := range f.stations {
				m := meet(f.t, s.Server)
				m.send(`{"type":"join","room":"bulk"}`)
				m.until("joined")
				go m.listen()
			}
			f.wait("every node to subscribe to bulk", func() bool {
				return strings.HasSuffix(f.broker.Do(f.t, "PUBSUB", "NUMSUB", "sy:bulk"), fmt.Sprintf(" %d", len(f.stations)))
			})
			f.broker.Do(f.t, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 0 0")
			return func() bool { return strings.Count(f.broker.Output(), cut) >= len(f.stations) }
		},
		again: func(f *fleet, s *station) {
			if res, said := post(f.t, s.Server, "/v1/rooms/bulk/messages", message); res.StatusCode != http.StatusCreated {
				f.t.Errorf("a backend is told %s %s", res.Status, said)
			}
		},
		undo: func(f *fleet, _ *station) {
			f.broker.Do(f.t, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")
		},
	}
}

// listen reads whatever comes, and so answers pings, until the connection ends.
func (s *stranger) listen() {
	for {
		if _, _, err := s.ws.Read(s.t.Context()); err != nil {
			return
		}
	}
}
