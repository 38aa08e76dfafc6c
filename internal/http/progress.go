package http

import (
	"context"
	"time"

	"switchyard/internal/protocol"
)

const (
	// returnTimeout bounds the wait for the nodes to tell who came back: each of
	// two tells once a second.
	returnTimeout      = 2500 * time.Millisecond
	returnPollInterval = 100 * time.Millisecond
)

// What becomes of the clients of a draining node: the closed set of values of
// the label result of websocket_moves_total.
const (
	moveTold   = "told"
	moveDone   = "moved"
	moveClosed = "closed"
	moveLost   = "lost"
)

// Progress counts what became of the clients of a draining node.
type Progress struct {
	Told   int `json:"told"`   // asked to move
	Moved  int `json:"moved"`  // said goodbye after that
	Closed int `json:"closed"` // still here at the deadline, told or not
	Lost   int `json:"lost"`   // gone without a word after they were told
	// Returned sessions were taken over on other nodes since the drain began, as
	// those tell, about two seconds late.
	Returned int `json:"returned"`
}

// updateReturned notes how many sessions came back elsewhere.
func (d *drain) updateReturned(r MoveTargets) Progress {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.ReturnsKnown {
		if !d.hasReturnedBefore {
			d.hasReturnedBefore, d.returnedBefore = true, r.Returned
		}
		d.progress.Returned = max(0, r.Returned-d.returnedBefore)
	}
	return d.progress
}

// awaitReturns waits a moment until all who left have been seen elsewhere, so that the
// last word of the drain tells what became of them. False says that the drain
// was taken back.
func (d *drain) awaitReturns(ctx context.Context) bool {
	tick := time.NewTicker(returnPollInterval)
	defer tick.Stop()
	for end := time.Now().Add(returnTimeout); time.Now().Before(end); {
		r := d.server.cfg.MoveTargets(d.currentScope())
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

// recordMove notes what became of a client that was told to move, unless the
// drain was taken back meanwhile.
func (s *Server) recordMove(code protocol.CloseCode, reason string) {
	s.mu.Lock()
	d := s.drain
	s.mu.Unlock()
	if d == nil {
		return
	}
	result := moveLost
	switch {
	case reason == reasonClient, code == protocol.CloseReplaced:
		result = moveDone
	case code == protocol.CloseRestart:
		result = moveClosed
	}
	s.metrics.moves.WithLabelValues(result).Inc()
	d.updateProgress(func(p *Progress) {
		switch result {
		case moveDone:
			p.Moved++
		case moveClosed:
			p.Closed++
		default:
			p.Lost++
		}
	})
}

func (d *drain) updateProgress(f func(*Progress)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.progress)
}

// A DrainState is what operators see of a drain.
type DrainState struct {
	// Phase is delay, moving, closing or drained; "" when nothing drains.
	Phase  string `json:"phase"`
	Scope  Scope  `json:"scope,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Seconds is how long it has been under way.
	Seconds float64 `json:"seconds,omitempty"`
	// Clients is how many are still here.
	Clients int `json:"clients"`
	Progress
}

// DrainState tells how far the drain has come.
func (s *Server) DrainState() DrainState {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.drain
	state := DrainState{Clients: s.admission.connected}
	if d == nil {
		return state
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	state.Phase, state.Scope, state.Reason, state.Progress = d.phase, d.scope, d.reason, d.progress
	state.Seconds = time.Since(d.began).Round(time.Millisecond).Seconds()
	return state
}

func (d *drain) currentProgress() Progress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.progress
}
