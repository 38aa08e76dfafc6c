package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// Redis is down when two nodes start, and then has every kind of fault. Delivery
// continues from the log all the while. When a fault is over, messages come from the
// broker again, and topics stop reading the log. The short form has the fault that
// only silence reveals and the one that breaks half of a connection; `make faults`
// runs all. A Redis that is killed or frozen and a link that is cut are in the tests
// of the broker, too.
func TestDeliveryDuringRedisFaults(t *testing.T) {
	t.Parallel()
	broker := testkit.StartRedis(t)
	broker.Stop()
	r := newFaultRun(startFaultEnv(t, rand.New(rand.NewPCG(1, 1)), 2, broker))
	r.startWorkload(4, 60, 20)
	r.requireLogDelivery()
	t.Logf("down at the start: %v", r.workload.waits.resetWorst())
	broker.Restart()
	r.waitBrokerDelivery()
	for _, fault := range []struct {
		kind     *faultKind
		duration time.Duration
		byLog    bool // it lasts long enough for some messages to come from the log
		longOnly bool
	}{
		{faultKindNamed(t, "Redis killed"), time.Second, true, true}, // and started again, empty
		{faultKindNamed(t, "Redis paused"), 4 * time.Second, true, true},
		{faultKindNamed(t, "link to Redis cut"), time.Second, true, true},
		{faultKindNamed(t, "link to Redis stalled"), 4 * time.Second, true, false}, // both ways, and no FIN
		{faultKindNamed(t, "link to Redis delayed"), time.Second, true, true},
		{faultKindNamed(t, "link to Redis half closed"), 200 * time.Millisecond, false, false},
		{r.smallOutputBuffer(), time.Second, false, true},
	} {
		if fault.longOnly && !*longFaults {
			continue
		}
		before := r.feedRepairs()
		r.runAlone(fault.kind, fault.duration)
		if fault.byLog && r.feedRepairs() == before {
			t.Errorf("%s: no message came from the log", fault.kind.name)
		}
		r.waitBrokerDelivery()
		r.workload.waits.resetWorst()
	}
	if verdict := r.workload.finish(t); verdict.Verdict != load.Clean || verdict.Unknown > 0 || verdict.Gaps > 0 {
		t.Error(verdict)
	} else {
		t.Logf("%d acked, %d delivered", verdict.Acked, verdict.Delivered)
	}
}

// requireLogDelivery waits until every member receives what is stored from now on,
// and checks that it does not come by the broker.
func (r *faultRun) requireLogDelivery() {
	r.t.Helper()
	r.waitRecovered()
	if r.feedRepairs() == 0 {
		r.t.Error("no message came from the log")
	}
	for _, s := range r.nodes {
		status, body := readiness(r.t, s.Server)
		if status != 200 || !strings.Contains(body, `"broker":"down"`) || r.metric(s, "broker_up") != 0 {
			r.t.Errorf("without Redis: %d %s", status, body)
		}
	}
}

func faultKindNamed(t *testing.T, name string) *faultKind {
	t.Helper()
	for _, k := range faultKinds() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("no kind of fault is called %q", name)
	return nil
}

// smallOutputBuffer has Redis cut every subscriber that has output pending beyond
// the first 16 KiB, which every client has. A backend sends larger messages to a
// room of its own with members on every node: each of them alone is too much,
// however fast the nodes read.
func (r *faultRun) smallOutputBuffer() *faultKind {
	const cut = "overcoming of output buffer limits"
	message := `{"data":"` + strings.Repeat("x", 40<<10) + `"}`
	return &faultKind{
		name: "Redis' output buffer too small", target: targetRedis,
		inject: func(f *faultEnv, _ *proxiedNode) func() bool {
			for _, s := range f.nodes {
				m := dialRaw(f.t, s.Server)
				m.send(`{"type":"join","room":"bulk"}`)
				m.readUntil("joined")
				go m.discardFrames()
			}
			f.eventually("every node to subscribe to bulk", func() bool {
				return strings.HasSuffix(f.broker.Do(f.t, "PUBSUB", "NUMSUB", "sy:bulk"), fmt.Sprintf(" %d", len(f.nodes)))
			})
			f.broker.Do(f.t, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 0 0")
			return func() bool { return strings.Count(f.broker.Output(), cut) >= len(f.nodes) }
		},
		onTick: func(f *faultEnv, s *proxiedNode) {
			if res, body := post(f.t, s.Server, "/v1/rooms/bulk/messages", message); res.StatusCode != http.StatusCreated {
				f.t.Errorf("a backend receives %s %s", res.Status, body)
			}
		},
		undo: func(f *faultEnv, _ *proxiedNode) {
			f.broker.Do(f.t, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")
		},
	}
}

// discardFrames reads all frames, and so answers pings, until the connection ends.
func (c *rawClient) discardFrames() {
	for {
		if _, _, err := c.ws.Read(c.t.Context()); err != nil {
			return
		}
	}
}
