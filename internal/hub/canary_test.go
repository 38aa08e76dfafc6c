package hub

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/protocol"
)

// newCanaryFixture is a world of one node, named n1, whose canary is at work.
func newCanaryFixture(t *testing.T) (*fixture, *Hub) {
	t.Helper()
	f := newFixture(t, 1, func(c *Config) {
		c.Node, c.CanaryInterval, c.CanaryStale = "n1", 5*time.Millisecond, 200*time.Millisecond
	})
	f.nodes[0].Start()
	return f, f.nodes[0]
}

func TestTheCanaryMeasuresBothLegs(t *testing.T) {
	_, h := newCanaryFixture(t)
	eventually(t, "the canary on both legs", func() bool {
		return testutil.CollectAndCount(h.metrics.canary) == 2 && h.Delivery().Verified
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
func TestADeadSubscriptionMakesOnlyTheBrokerLegStale(t *testing.T) {
	f, h := newCanaryFixture(t)
	eventually(t, "an echo", func() bool { return h.canary.broker.arrived.Load() })
	f.broker.setDrop(func([]byte) bool { return true })
	eventually(t, "the broker's leg to be stale", func() bool { return h.Delivery().BrokerStale })
	if d := h.Delivery(); d.LocalStale {
		t.Errorf("local delivery is alive: %+v", d)
	}
	f.broker.setDrop(nil)
	eventually(t, "the echo to be back", func() bool { return !h.Delivery().BrokerStale })
}

func TestAnUnavailableLogMakesTheLocalLegStale(t *testing.T) {
	f, h := newCanaryFixture(t)
	eventually(t, "a first canary", func() bool { return h.Delivery().Verified })
	f.log.setDown(true)
	eventually(t, "the local leg to be stale", func() bool { return h.Delivery().LocalStale })
	f.log.setDown(false)
	eventually(t, "delivery to be back", func() bool { return !h.Delivery().LocalStale })
}

// A member that fell out of its room, as after a join that the log was too
// late for, joins again.
func TestTheCanaryRejoinsItsRoom(t *testing.T) {
	_, h := newCanaryFixture(t)
	eventually(t, "a first canary", func() bool { return h.Delivery().Verified })
	h.canary.client.Close(true)
	eventually(t, "the canary in its room", func() bool { return h.canary.client.RoomCount() == 1 })
	eventually(t, "fresh arrivals", func() bool { return !h.Delivery().LocalStale })
}

func TestTheCanaryIgnoresOtherMessages(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.Node = "n1" })
	c := f.nodes[0].canary // not started
	before := c.local.newestSentAt.Load()
	for name, frame := range map[string]string{
		"joined":                    `{"type":"joined","room":"_canary.n1"}`,
		"an earlier process's":      `{"type":"message","id":"abc-canary-9999999999999999"}`,
		"no number behind the name": `{"type":"message","id":"` + c.idPrefix + `x"}`,
		"cut":                       `{"type":"message","id":"` + c.idPrefix,
		"an older one":              `{"type":"message","id":"` + c.idPrefix + `1"}`,
	} {
		c.Send(protocol.Frame(frame))
		if got := c.local.newestSentAt.Load(); got != before || c.local.arrived.Load() {
			t.Errorf("%s counted as an arrival", name)
		}
	}
	// Two that left in one write: the newer counts.
	c.Send(protocol.Frame(`{"id":"` + c.idPrefix + `1"}{"id":"` + c.idPrefix + `99999999999999999"}`))
	if got := c.local.newestSentAt.Load(); got != 99999999999999999 {
		t.Errorf("newest is %d", got)
	}
}

func TestWithoutANodeNameThereIsNoCanary(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].Start()
	if d := f.nodes[0].Delivery(); !d.Verified || d.LocalStale || d.BrokerStale {
		t.Errorf("a hub without canary says %+v", d)
	}
}
