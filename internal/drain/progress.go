package drain

import (
	"context"
	"time"
)

const (
	// returnTimeout bounds the wait for the other nodes to report which sessions
	// returned. Both this node and the other publish their status once a second.
	returnTimeout      = 2500 * time.Millisecond
	returnPollInterval = 100 * time.Millisecond
)

// The results of a move: the closed set of values of the label result of
// websocket_moves_total.
const (
	moveAsked  = "told" // dashboards know it by this name
	moveDone   = "moved"
	moveClosed = "closed"
	moveLost   = "lost"
)

// Progress counts what became of the clients of a draining node.
type Progress struct {
	Asked  int `json:"told"`   // asked to move; the admin API calls it told
	Moved  int `json:"moved"`  // closed by the client after it was asked
	Closed int `json:"closed"` // closed by the node at the deadline, asked or not
	Lost   int `json:"lost"`   // ended in any other way after the client was asked, such as without a close frame
	// Returned counts the sessions that other nodes have taken over since the drain
	// began, as those nodes report it, about two seconds late.
	Returned int `json:"returned"`
}

// updateReturned stores how many sessions returned on other nodes, and returns the
// progress.
func (d *drain) updateReturned(r MoveTargets) Progress {
	if r.ReturnsKnown {
		if !d.hasReturnedBefore {
			d.hasReturnedBefore, d.returnedBefore = true, r.Returned
		}
		d.setReturned(max(0, r.Returned-d.returnedBefore))
	}
	return d.currentProgress()
}

// awaitReturns waits until other nodes have reported all clients that left, at most
// for returnTimeout, so that the final progress is complete. It returns false if
// the drain was canceled.
func (d *drain) awaitReturns(ctx context.Context) bool {
	tick := time.NewTicker(returnPollInterval)
	defer tick.Stop()
	for end := time.Now().Add(returnTimeout); time.Now().Before(end); {
		r := d.targets()
		if !r.ReturnsKnown || r.Nodes == 0 {
			return true
		}
		if p := d.updateReturned(r); p.Returned >= p.Moved+p.Closed {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// A State is the state of a drain in the admin API and in /readyz.
type State struct {
	// Phase is delay, moving, closing or drained; "" if no drain is running.
	Phase  string `json:"phase"`
	Scope  Scope  `json:"scope,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Seconds is the time since the drain began.
	Seconds float64 `json:"seconds,omitempty"`
	// Clients is the number of clients that are still connected.
	Clients int `json:"clients"`
	Progress
}
