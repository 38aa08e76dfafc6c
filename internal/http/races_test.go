package http

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/admission"
	"switchyard/internal/auth"
	"switchyard/internal/drain"
)

// A gatedVerifier keeps handshakes with a token waiting until its gate is closed.
type gatedVerifier struct {
	Verifier
	waiting chan struct{} // receives a value for each handshake that waits
	gate    chan struct{}
}

func newGatedVerifier(v Verifier) *gatedVerifier {
	return &gatedVerifier{Verifier: v, waiting: make(chan struct{}, 1), gate: make(chan struct{})}
}

func (v *gatedVerifier) Verify(ctx context.Context, token string) (auth.Identity, error) {
	v.waiting <- struct{}{}
	<-v.gate
	return v.Verifier.Verify(ctx, token)
}

// A handshake that was admitted before a stop may register only after all
// connections have been closed. It is closed like the others and does not stay open.
func TestAHandshakeThatOvertakesAStopIsClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var v *gatedVerifier
		n := startKeyedNode(t, "", func(c *Config) { v = newGatedVerifier(c.Verifier); c.Verifier = v })
		opened := make(chan *browser)
		go func() { opened <- n.open(withToken(tokenOf("ann", time.Hour, everyRoom))) }()
		<-v.waiting
		stopped := make(chan error, 1)
		go func() { stopped <- n.drain.CloseClients(context.Background()) }()
		synctest.Wait() // CloseClients has closed all registered connections: there are none
		began := time.Now()
		close(v.gate)
		if code := (<-opened).closed(); code != 1012 {
			t.Errorf("closed with %d, want 1012", code)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("closed after %v, want at once", took)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// lateBans bans every user from the second check on.
type lateBans struct {
	Bans
	asked bool
}

func (b *lateBans) Banned(user string) (time.Duration, bool) {
	if !b.asked {
		b.asked = true
		return b.Bans.Banned(user)
	}
	return time.Minute, true
}

// A ban may come after a handshake was checked and before its connection can be found
// by its user. The connection is closed all the same, by a token in the handshake and
// by one in a frame.
func TestABanDuringAHandshakeClosesTheConnection(t *testing.T) {
	for _, byFrame := range []bool{false, true} {
		inBubble(t, func(t *testing.T) {
			n := startKeyedNode(t, "", func(c *Config) { c.Bans = &lateBans{Bans: c.Bans} })
			ann := tokenOf("ann", time.Hour, everyRoom)
			var b *browser
			if byFrame {
				b = n.open(nil)
				b.send(`{"type":"auth","token":"%s"}`, ann)
			} else {
				b = n.open(withToken(ann))
			}
			if code := b.closed(); code != 4003 {
				t.Errorf("by frame %v: closed with %d, want 4003", byFrame, code)
			}
		})
	}
}

// A stop that finds nobody connected may return at once: a handshake that looked at the
// drain before the stop is counted, or refused.
func TestNoHandshakeIsAdmittedAfterAStopFoundNobody(t *testing.T) {
	node := new(drain.Node)
	s := &Server{admission: admission.NewCounter(admission.Limits{Connections: 1}), drain: node}
	looked, found := false, 0
	u := &upgrader{server: s, takesClients: func() bool {
		takes := node.TakesClients()
		if !looked { // the stop comes right after the handshake's first look
			looked = true
			s.Stop()
			found = s.admission.Count()
		}
		return takes
	}}
	if slot := u.admit(&caller{}); slot != nil && found == 0 {
		t.Error("a handshake was admitted after a stop found nobody connected")
	}
	if left := s.admission.Count(); left != 0 {
		t.Errorf("%d connections are counted", left)
	}
}
