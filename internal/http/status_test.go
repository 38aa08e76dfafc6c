package http

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"switchyard/internal/drain"
	"switchyard/internal/testkit"
)

func TestStatusDescribesTheNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, nil)
		n.dial(nil)
		s := n.Status()
		if s.Node != "n1" || s.Deployment != "d1" || s.Color != "blue" || s.Connections != 1 || !s.Ready || s.Draining {
			t.Errorf("status %+v", s)
		}
		if n.Status().HandshakeLimit != 500 {
			t.Errorf("limit %v", n.Status().HandshakeLimit)
		}
		var b *browser
		for range 10 { // from ten clients on (docs/decisions/0019)
			if n.Status().HandshakeP95 != 0 {
				t.Error("there is a latency of the node from fewer than ten clients")
			}
			b = n.dial(nil)
			b.send(`{"type":"moved","from":"n0","handshake_ms":40}`)
		}
		testkit.Eventually(t, "the clients' latency", func() bool { return n.Status().HandshakeP95 == 40*time.Millisecond })
		n.mu.Lock()
		n.state = []Component{{"log", "down", true}}
		n.mu.Unlock()
		if n.Status().Ready {
			t.Error("the node is ready without its log")
		}
		n.drain.Start(drain.ScopeNode, "test")
		if s := n.Status(); !s.Draining || s.Ready {
			t.Errorf("draining: %+v", s)
		}
		n.awaitPhase(drain.PhaseMoving)
		testkit.Eventually(t, "clients that were not asked", func() bool { return n.Status().Leaving > 0 })
		b.followMove()
		testkit.Eventually(t, "clients that were asked", func() bool { return n.Status().MovesAsked > 0 })
	})
}

func TestHandshakesOverTheRateAreRefusedWithRetryAfter(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.MaxHandshakeRate = 3 })
		refused := 0
		for range 10 {
			res, _ := n.request("GET", "/ws", upgradeHeader(), http.NoBody)
			switch {
			case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "1":
				refused++
			case res.StatusCode != http.StatusSwitchingProtocols:
				t.Errorf("handshake: %d", res.StatusCode)
			}
		}
		if refused == 0 {
			t.Error("all of ten handshakes were accepted, want three a second")
		}
		if got := n.metric(`websocket_connections_total{result="too_fast"}`); got != fmt.Sprint(refused) {
			t.Errorf("%s of %d refusals are counted", got, refused)
		}
		testkit.Eventually(t, "the next handshake to be accepted", func() bool {
			res, _ := n.request("GET", "/ws", upgradeHeader(), http.NoBody)
			return res.StatusCode == http.StatusSwitchingProtocols
		})
	})
}

func TestAMeterReportsARate(t *testing.T) {
	var m meter
	now := time.Now()
	if got := m.perSecond(now); got != 0 {
		t.Errorf("the first rate is %v", got)
	}
	m.count.Add(30)
	if got := m.perSecond(now.Add(100 * time.Millisecond)); got != 0 {
		t.Errorf("within half a second the rate is %v, want the last one", got)
	}
	if got := m.perSecond(now.Add(2 * time.Second)); got != 15 {
		t.Errorf("30 in 2 s are %v a second", got)
	}
	if got := m.perSecond(now.Add(3 * time.Second)); got != 0 {
		t.Errorf("none in a second are %v", got)
	}
}
