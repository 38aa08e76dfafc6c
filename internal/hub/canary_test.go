package hub

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/protocol"
)

// canaryWorld is a world of one node, named n1, whose canary is at work.
func canaryWorld(t *testing.T) (*world, *Hub) {
	t.Helper()
	w := newWorld(t, 1, func(c *Config) {
		c.Node, c.CanaryInterval, c.CanaryStale = "n1", 5*time.Millisecond, 200*time.Millisecond
	})
	w.nodes[0].Start()
	return w, w.nodes[0]
}

func TestTheCanaryProvesBothLegs(t *testing.T) {
	_, h := canaryWorld(t)
	eventually(t, "the canary on both legs", func() bool {
		return testutil.CollectAndCount(h.metrics.canary) == 2 && h.Delivery().Proved
	})
	if d := h.Delivery(); d.LocalStale || d.BrokerStale {
		t.Errorf("stale with everything at work: %+v", d)
	}
	reg := h.cfg.Registerer.(*prometheus.Registry)
	if n, err := testutil.GatherAndCount(reg, "websocket_canary_age_seconds"); err != nil || n != 2 {
		t.Errorf("%d ages, %v; a leg each wanted", n, err)
	}
}

// A node that publishes to members of its own looks well while its
// subscription is dead: only the echo tells.
func TestADeadSubscriptionMakesTheBrokerLegStaleAlone(t *testing.T) {
	w, h := canaryWorld(t)
	eventually(t, "an echo", func() bool { return h.canary.broker.proved.Load() })
	w.wire.losing(func([]byte) bool { return true })
	eventually(t, "the broker's leg to be stale", func() bool { return h.Delivery().BrokerStale })
	if d := h.Delivery(); d.LocalStale {
		t.Errorf("local delivery is alive: %+v", d)
	}
	w.wire.losing(nil)
	eventually(t, "the echo to be back", func() bool { return !h.Delivery().BrokerStale })
}

func TestALogThatIsAwayMakesTheLocalLegStale(t *testing.T) {
	w, h := canaryWorld(t)
	eventually(t, "a first canary", func() bool { return h.Delivery().Proved })
	w.log.setDown(true)
	eventually(t, "the local leg to be stale", func() bool { return h.Delivery().LocalStale })
	w.log.setDown(false)
	eventually(t, "delivery to be back", func() bool { return !h.Delivery().LocalStale })
}

// A member that fell out of its room, as after a join that the log was too
// late for, joins again.
func TestTheCanaryJoinsAgain(t *testing.T) {
	_, h := canaryWorld(t)
	eventually(t, "a first canary", func() bool { return h.Delivery().Proved })
	h.canary.client.Close(true)
	eventually(t, "the canary in its room", func() bool { return h.canary.client.InRooms() == 1 })
	eventually(t, "fresh arrivals", func() bool { return !h.Delivery().LocalStale })
}

func TestTheCanaryKnowsItsOwn(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Node = "n1" })
	c := w.nodes[0].canary // not started
	before := c.local.newest.Load()
	for name, frame := range map[string]string{
		"joined":                    `{"type":"joined","room":"_canary.n1"}`,
		"an earlier process's":      `{"type":"message","id":"abc-canary-9999999999999999"}`,
		"no number behind the name": `{"type":"message","id":"` + c.prefix + `x"}`,
		"cut":                       `{"type":"message","id":"` + c.prefix,
		"an older one":              `{"type":"message","id":"` + c.prefix + `1"}`,
	} {
		c.Send(protocol.Frame(frame))
		if got := c.local.newest.Load(); got != before || c.local.proved.Load() {
			t.Errorf("%s counted as an arrival", name)
		}
	}
	// Two that left in one write: the newer counts.
	c.Send(protocol.Frame(`{"id":"` + c.prefix + `1"}{"id":"` + c.prefix + `99999999999999999"}`))
	if got := c.local.newest.Load(); got != 99999999999999999 {
		t.Errorf("newest is %d", got)
	}
}

func TestWithoutANodeNameThereIsNoCanary(t *testing.T) {
	w := newWorld(t, 1)
	w.nodes[0].Start()
	if d := w.nodes[0].Delivery(); !d.Proved || d.LocalStale || d.BrokerStale {
		t.Errorf("a hub without canary says %+v", d)
	}
}
