package drain

import (
	"strings"
	"testing"
	"time"
)

func TestClientsThatDoNotReturnAreMissingForAWhile(t *testing.T) {
	var a returnTracker
	// A hundred leave in each wave, and return two waves later, except for those of
	// the third.
	steps := []struct {
		departed, returned, want int
	}{
		{100, 0, 0}, {200, 0, 0}, {300, 100, 0}, // nobody is late yet
		{400, 200, 0}, {400, 200, 0}, {400, 200, 100}, {400, 300, 100}, {400, 300, 100},
	}
	for i, s := range steps {
		if got := a.next(s.departed, s.returned, true); got != s.want {
			t.Errorf("wave %d: %d clients are missing, want %d", i, got, s.want)
		}
	}
	for range giveUpWaves {
		a.next(400, 300, true)
	}
	if got := a.next(400, 300, true); got != 0 {
		t.Errorf("%d clients are still missing after giveUpWaves", got)
	}
	for departed, returned := 500, 300; departed < 1500; departed += 100 {
		if got := a.next(departed, returned, true); got != 0 {
			t.Errorf("%d clients are missing in place of those written off", got)
		}
		if departed >= 700 {
			returned += 100
		}
	}
}

// While Redis is down no node counts returns, and clients return with new
// sessions.
func TestClientsThatLeftDuringAnOutageAreNotMissing(t *testing.T) {
	var a returnTracker
	departed, returned := 0, 0
	for wave := range 40 {
		unknown := wave >= 5 && wave < 10
		departed += 100
		if !unknown && wave >= 2 {
			returned += 100
		}
		if got := a.next(departed, returned, !unknown); got != 0 {
			t.Errorf("wave %d: %d clients are missing", wave, got)
		}
	}
}

// A drain pauses while the clients that left do not return elsewhere, and continues
// when they do. The progress and the log show it.
func TestADrainWaitsUntilMovedClientsReturnElsewhere(t *testing.T) {
	inBubble(t, func(c *Config) { c.Window, c.Timeout = 10*time.Second, 2*time.Minute }, func(t *testing.T, n *testNode) {
		returned := func(sessions int) *MoveTargets {
			r := healthyTargets
			r.ReturnsKnown, r.Returned = true, sessions
			return &r
		}
		const clients, before = 120, 7 // before: returned before the drain, and do not count
		n.targets.Store(returned(before))
		n.connectMany(clients, follows)
		n.Start(ScopeNode, "x")
		time.Sleep(8 * time.Second)
		paused := n.State()
		if paused.Returned != 0 || paused.Moved == 0 || paused.Clients == 0 || paused.Asked == clients {
			t.Errorf("the drain paused at %+v", paused)
		}
		time.Sleep(2 * time.Second)
		if now := n.State(); now.Asked != paused.Asked {
			t.Errorf("%d clients were asked while those that left have not returned", now.Asked-paused.Asked)
		}
		n.targets.Store(returned(before + clients)) // all of them return, late
		n.awaitPhase(PhaseDrained)
		if state := n.State(); state.Asked != clients || state.Moved != clients || state.Returned != clients {
			t.Errorf("at the end: %+v", state)
		}
		if logs := n.logs.String(); !strings.Contains(logs, `"msg":"drained"`) || !strings.Contains(logs, `"returned":120`) {
			t.Errorf("the log does not show the returns: %s", logs)
		}
	})
}
