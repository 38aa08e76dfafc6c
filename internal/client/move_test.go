package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// move asks the client to leave n1.
func (p *peer) move(afterMS, deadlineMS int) {
	p.t.Helper()
	p.send(`{"type":"move","after_ms":%d,"deadline_ms":%d,"avoid":{"node":"n1"},"reason":"deploy"}`, afterMS, deadlineMS)
	synctest.Wait()
}

func (p *peer) welcome(node string) {
	p.t.Helper()
	p.send(`{"type":"welcome","session":"s","user":null,"node":%q,"heartbeat_ms":25000,"max_frame":1000}`, node)
	synctest.Wait()
}

// discardFrames reads and drops frames in the background, so that the peer answers a
// close frame.
func (p *peer) discardFrames() {
	go func() {
		for {
			if _, _, err := p.WS.Read(context.Background()); err != nil {
				_ = p.WS.CloseNow()
				return
			}
		}
	}()
}

func TestOnMovedIsCalledOnceTheMoveIsDone(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var got []MovedEvent
		c := s.newClient(Options{OnMoved: func(e MovedEvent) { got = append(got, e) }})
		var room eventLog
		room.join(c, "r", Now())
		first := s.accept()
		first.acceptJoin(2)
		first.discardFrames()
		first.move(100, 1000)
		time.Sleep(100 * time.Millisecond)
		second := s.acceptWithoutWelcome()
		time.Sleep(30 * time.Millisecond)
		second.welcome("n2")
		second.expect("moved")
		time.Sleep(20 * time.Millisecond)
		if len(got) != 0 || c.Welcome().Node != "n1" {
			t.Errorf("OnMoved got %+v, and the client is on %s, before the room is joined", got, c.Welcome().Node)
		}
		second.acceptJoin(2)
		room.want(t, "joined 2")
		if len(got) != 1 || got[0].From.Node != "n1" || got[0].To.Node != "n2" || got[0].Reason != "deploy" || got[0].Took != 50*time.Millisecond {
			t.Errorf("OnMoved got %+v", got)
		}
		if c.Welcome().Node != "n2" {
			t.Errorf("the client is on %s, want n2", c.Welcome().Node)
		}
		second.message(3, "a", "null")
		room.want(t, "joined 2", "e/3")
	})
}

func TestAMoveTriesTheNextURLWhenTheFirstLeadsToTheNodeToAvoid(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.newClient(Options{URLs: []string{"ws://one/ws", "ws://two/ws"}})
		first := s.accept()
		first.discardFrames()
		first.move(0, 60_000)
		avoided := s.acceptWithoutWelcome()
		avoided.discardFrames()
		avoided.welcome("n1")
		other := s.acceptWithoutWelcome()
		other.welcome("n2")
		other.expect("moved")
		if got := strings.Join(s.urls, " "); got != "one one two" {
			t.Errorf("the client tried %s", got)
		}
	})
}

func TestAnEarlierSessionIsResumed(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{Session: "5PQ.kept"})
		p := s.acceptWithoutWelcome()
		if got := p.Header.Get("Switchyard-Session"); got != "5PQ.kept" {
			t.Errorf("the handshake has session %q", got)
		}
		p.send(`{"type":"welcome","session":"5PQ.kept","resumed":true,"user":null,"node":"n1","heartbeat_ms":25000,"max_frame":1000}`)
		synctest.Wait()
		if !c.Welcome().Resumed {
			t.Error("the Welcome does not say that the session was resumed")
		}
	})
}

// A service that reads and sends nothing must delay neither a move nor Close for
// long.
func TestAMoveFromAnUnresponsiveServiceIsBounded(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		moved := make(chan time.Time, 1)
		c := s.newClient(Options{OnMoved: func(MovedEvent) { moved <- time.Now() }})
		first := s.accept()
		first.move(0, 1000)
		start := time.Now()
		second := s.acceptWithoutWelcome()
		second.welcome("n2")
		if at := <-moved; at.Sub(start) != 0 {
			t.Errorf("the client moved after %v", at.Sub(start))
		}
		c.Close()
		if took := time.Since(start); took > 3*closeTimeout {
			t.Errorf("the client was closed after %v", took)
		}
	})
}

// Close ends both connections and every goroutine at any moment of a move. The
// bubble checks that no goroutine is left.
func TestCloseAtAnyMomentOfAMove(t *testing.T) {
	for ms := range 60 {
		t.Run(fmt.Sprint(ms), func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				c := s.newClient(Options{HTTPClient: s.limitedHTTPClient(t), random: zeroRandom, Token: func(ctx context.Context) (string, error) {
					select {
					case <-time.After(7 * time.Millisecond):
						return "t", nil
					case <-ctx.Done():
						return "", ctx.Err()
					}
				}})
				var accepted atomic.Int64
				s.serve(func(p *peer) { welcomeThenMove(p, accepted.Add(1) == 1) })
				time.Sleep(time.Duration(ms) * time.Millisecond)
				began := time.Now()
				c.Close()
				if took := time.Since(began); took > 2*closeTimeout {
					t.Errorf("Close took %v", took)
				}
				if err := c.Err(); !errors.Is(err, ErrClosed) {
					t.Errorf("Err = %v", err)
				}
				time.Sleep(time.Second) // of the bubble: for the goroutines of the service
			})
		})
	}
}

// welcomeThenMove welcomes after 5 ms and asks for a move. The first connection
// breaks 25 ms after that.
func welcomeThenMove(p *peer, first bool) {
	p.discardFrames()
	node := "n2"
	if first {
		node = "n1"
	}
	send := func(frame string) bool {
		time.Sleep(5 * time.Millisecond)
		return p.WS.Write(context.Background(), 1, []byte(frame)) == nil
	}
	ok := send(fmt.Sprintf(`{"type":"welcome","user":null,"node":%q,"heartbeat_ms":25000,"max_frame":1000}`, node)) &&
		send(`{"type":"move","after_ms":5,"deadline_ms":50,"avoid":{"node":"n1"},"reason":"deploy"}`)
	if ok && first {
		time.Sleep(25 * time.Millisecond)
		_ = p.WS.CloseNow()
	}
}

func TestRefreshTokenNeedsATokenSource(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		if err := s.newClient(Options{}).RefreshToken(t.Context()); !errors.Is(err, ErrNoToken) {
			t.Errorf("RefreshToken = %v", err)
		}
		s.accept()
		unavailable := errors.New("the token service is unavailable")
		requests := 0
		c := s.newClient(Options{Token: func(ctx context.Context) (string, error) {
			deadline, ok := ctx.Deadline()
			if !ok || time.Until(deadline) > tokenTimeout {
				t.Errorf("Options.Token was called with the deadline %v", deadline)
			}
			if requests++; requests == 2 {
				return "", unavailable
			}
			return "t", nil
		}})
		p := s.accept()
		if err := c.RefreshToken(t.Context()); !errors.Is(err, unavailable) {
			t.Errorf("RefreshToken = %v", err)
		}
		p.closeWith(1012)
		if err := c.RefreshToken(t.Context()); err != nil {
			t.Errorf("RefreshToken between two connections = %v", err)
		}
		c.Close()
		if err := c.RefreshToken(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("RefreshToken after Close = %v", err)
		}
	})
}

func TestAPresenceRequestIsCheckedBeforeItIsSent(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		s.accept()
		if _, err := c.Presence(t.Context(), "a b"); err == nil {
			t.Error("the client accepts a room with a space")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Presence(ctx, "r"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Presence = %v", err)
		}
		c.Close()
		if _, err := c.Presence(t.Context(), "r"); !errors.Is(err, ErrClosed) {
			t.Errorf("Presence = %v", err)
		}
	})
}

func TestRememberedSignalsAreBoundedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		frame := func(n int) *serverFrame {
			return &serverFrame{Room: message.Room("r"), From: []byte("null"), Data: fmt.Append(nil, n)}
		}
		var e *signalDedup
		if e.seenBefore(1, frame(1)); e != nil {
			t.Fatal("signals are remembered without a move")
		}
		e.expireSoon()
		e = e.start()
		for n := range 2 * maxDedupSignals {
			if e.seenBefore(1, frame(n)) {
				t.Fatalf("the first copy of signal %d counts as seen", n)
			}
		}
		if len(e.counts) != maxDedupSignals {
			t.Errorf("%d signals are remembered, want %d", len(e.counts), maxDedupSignals)
		}
		if !e.seenBefore(2, frame(0)) || e.seenBefore(2, frame(0)) || !e.seenBefore(1, frame(0)) {
			t.Error("two equal signals must be delivered twice, from either connection")
		}
		e.expireSoon()
		e = e.start() // the next move, soon after: a third connection
		if first, second, third := e.seenBefore(3, frame(0)), e.seenBefore(3, frame(0)), e.seenBefore(3, frame(0)); !first || !second || third {
			t.Error("on the third connection only the third equal signal must be delivered")
		}
		e.expireSoon()
		time.Sleep(signalDedupWindow + time.Millisecond)
		if e.seenBefore(2, frame(1)) || len(e.start().counts) != 0 {
			t.Error("signals are remembered for too long")
		}
	})
}

func TestDurationsFromTheServiceAreBounded(t *testing.T) {
	for ms, want := range map[int64]time.Duration{-1: 0, 0: 0, 1500: 1500 * time.Millisecond, 1 << 62: 24 * time.Hour} {
		if got := millis(ms); got != want {
			t.Errorf("%d ms is %v", ms, got)
		}
	}
}

// A refused handshake of the next connection is repeated.
func TestAMoveRetriesARefusedHandshake(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		moved := make(chan struct{}, 1)
		s.newClient(Options{OnMoved: func(MovedEvent) { moved <- struct{}{} }})
		first := s.accept()
		first.discardFrames()
		s.refuseNext(http.StatusServiceUnavailable, http.StatusForbidden, http.StatusUnauthorized, http.StatusTooManyRequests)
		first.move(0, 60_000)
		s.acceptWithoutWelcome().welcome("n2")
		<-moved
		if len(s.urls) != 6 {
			t.Errorf("the client made %d handshakes, want 6", len(s.urls))
		}
	})
}

// A third connection is opened only after the second is closed, however long that
// takes.
func TestThereAreNeverThreeConnections(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{HTTPClient: s.limitedHTTPClient(t)})
		var room eventLog
		room.join(c, "r", Now())
		first := s.accept()
		first.acceptJoin(2)
		first.discardFrames()
		first.move(0, 60_000)
		second := s.acceptWithoutWelcome()
		second.welcome("n2") // it reads no further, so it does not answer the close frame
		start := time.Now()
		first.send(`{"type":"move","after_ms":0,"deadline_ms":60000,"avoid":{"node":"n2"},"reason":"deploy"}`)
		third := s.acceptWithoutWelcome()
		if waited := third.ConnectedAt.Sub(start); waited != closeTimeout {
			t.Errorf("the third connection was opened after %v, want %v", waited, closeTimeout)
		}
		third.welcome("n3")
		third.expect("moved")
		third.acceptJoin(2)
		synctest.Wait()
		if node := c.Welcome().Node; node != "n3" {
			t.Errorf("the client is on %s, want n3", node)
		}
	})
}

// A move also waits for a room that is joined at the last moment.
func TestAMoveWaitsForARoomJoinedAtTheLastMoment(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		moved := 0
		c := s.newClient(Options{OnMoved: func(MovedEvent) { moved++ }})
		var room eventLog
		release := make(chan struct{})
		handler := room.handler()
		handler.Message = func(message.Message) { <-release }
		go func() { _, _ = c.Join(context.Background(), "r", Now(), handler) }()
		first := s.accept()
		first.acceptJoin(2)
		first.move(0, 60_000)
		second := s.acceptWithoutWelcome()
		second.welcome("n2")
		second.expect("moved")
		second.expect("join")
		first.message(3, "a", "null") // its handler runs while the test leaves the last room and joins another
		synctest.Wait()
		c.Leave("r")
		go func() { _, _ = c.Join(context.Background(), "q", Start(), room.handler()) }()
		for joined := false; !joined; runtime.Gosched() { // the bubble does not rest while a lock is waited for
			c.mu.Lock()
			joined = c.rooms["q"] != nil
			c.mu.Unlock()
		}
		close(release)
		synctest.Wait()
		if moved != 0 {
			t.Fatal("the client moved before the room was joined on the next connection")
		}
		first.expect("leave")
		first.acceptJoin(0)
		second.expect("leave")
		second.acceptJoin(0)
		synctest.Wait()
		if moved != 1 {
			t.Error("the client did not move once the room was joined")
		}
	})
}
