package hub

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// newCanaryFixture returns a fixture with one node, n1, whose canary has
// started.
func newCanaryFixture(t *testing.T) (*fixture, *Hub) {
	t.Helper()
	f := newFixture(t, 1, func(c *Config) {
		c.Node, c.CanaryInterval, c.CanaryStale = "n1", 5*time.Millisecond, 200*time.Millisecond
	})
	f.nodes[0].Start()
	return f, f.nodes[0]
}

func TestTheCanaryMeasuresBothLegs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := newCanaryFixture(t)
		testkit.Eventually(t, "a canary message on both paths", func() bool {
			return testutil.CollectAndCount(h.metrics.canary) == 2 && h.Delivery().Verified
		})
		if d := h.Delivery(); d.LocalStale || d.BrokerStale {
			t.Errorf("stale although delivery works: %+v", d)
		}
		reg := h.cfg.Registerer.(*prometheus.Registry)
		if n, err := testutil.GatherAndCount(reg, "websocket_canary_age_seconds"); err != nil || n != 2 {
			t.Errorf("%d ages, %v; want one for each path", n, err)
		}
	})
}

// A slowLog answers reads after a moment.
type slowLog struct{ *memLog }

func (l slowLog) Read(ctx context.Context, r message.Range) (message.Page, error) {
	time.Sleep(50 * time.Millisecond)
	return l.memLog.Read(ctx, r)
}

// A node is ready once its first canary message has arrived. The first one that is
// published does, however long the room takes to open.
func TestTheFirstCanaryMessageArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, func(c *Config) { c.Node, c.CanaryInterval, c.CanaryStale = "n1", time.Hour, 2*time.Hour })
		h := f.nodes[0]
		h.cfg.Log = slowLog{f.log}
		began := time.Now()
		h.Start()
		testkit.Eventually(t, "delivery to be verified", func() bool { return h.Delivery().Verified })
		if took := time.Since(began); took > time.Second {
			t.Errorf("verified after %v", took)
		}
	})
}

// A node that publishes to its own members looks healthy while its subscription
// is dead. Only the echo reveals it.
func TestADeadSubscriptionMakesOnlyTheBrokerLegStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, h := newCanaryFixture(t)
		testkit.Eventually(t, "an echo", func() bool { return h.canary.broker.arrived.Load() })
		f.broker.setDrop(func([]byte) bool { return true })
		testkit.Eventually(t, "the broker's path to be stale", func() bool { return h.Delivery().BrokerStale })
		if d := h.Delivery(); d.LocalStale {
			t.Errorf("the local path is stale although local delivery works: %+v", d)
		}
		f.broker.setDrop(nil)
		testkit.Eventually(t, "the echo to be back", func() bool { return !h.Delivery().BrokerStale })
	})
}

func TestAnUnavailableLogMakesTheLocalLegStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, h := newCanaryFixture(t)
		testkit.Eventually(t, "a first canary", func() bool { return h.Delivery().Verified })
		f.log.setDown(true)
		testkit.Eventually(t, "the local path to be stale", func() bool { return h.Delivery().LocalStale })
		f.log.setDown(false)
		testkit.Eventually(t, "delivery to be back", func() bool { return !h.Delivery().LocalStale })
	})
}

// A canary that fell out of its room, as after a join that the log could not
// serve in time, joins again.
func TestTheCanaryRejoinsItsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := newCanaryFixture(t)
		testkit.Eventually(t, "a first canary", func() bool { return h.Delivery().Verified })
		h.canary.client.Close(true)
		testkit.Eventually(t, "the canary in its room", func() bool { return h.canary.client.RoomCount() == 1 })
		testkit.Eventually(t, "fresh arrivals", func() bool { return !h.Delivery().LocalStale })
	})
}

func TestTheCanaryIgnoresOtherMessages(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.Node = "n1" })
	c := f.nodes[0].canary // not started
	before := c.local.newestSentAt.Load()
	for name, frame := range map[string]string{
		"joined":                          `{"type":"joined","room":"_canary.n1"}`,
		"a message of an earlier process": `{"type":"message","id":"abc-canary-9999999999999999"}`,
		"an id without a number":          `{"type":"message","id":"` + c.idPrefix + `x"}`,
		"a truncated frame":               `{"type":"message","id":"` + c.idPrefix,
		"an older message":                `{"type":"message","id":"` + c.idPrefix + `1"}`,
	} {
		c.Send(protocol.Frame(frame))
		if got := c.local.newestSentAt.Load(); got != before || c.local.arrived.Load() {
			t.Errorf("%s counted as an arrival", name)
		}
	}
	// Of two messages in one write the newer counts.
	c.Send(protocol.Frame(`{"id":"` + c.idPrefix + `1"}{"id":"` + c.idPrefix + `99999999999999999"}`))
	if got := c.local.newestSentAt.Load(); got != 99999999999999999 {
		t.Errorf("the newest send time is %d", got)
	}
}

func TestWithoutANodeNameThereIsNoCanary(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].Start()
	if d := f.nodes[0].Delivery(); !d.Verified || d.LocalStale || d.BrokerStale {
		t.Errorf("a hub without a canary reports %+v", d)
	}
}
