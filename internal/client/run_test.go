package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

func TestCloseCodesDecideHowTheClientReconnects(t *testing.T) {
	type codeCase struct {
		closeAction
		codes []int
	}
	for _, h := range []codeCase{
		{actionStop, []int{1000, 1002, 1003, 1007, 1008, 4003, 4009}},
		{actionNewToken, []int{4001}},
		{actionReconnectSoon, []int{1012, 4200, 4208, 4209, 4299}},
		{actionBackOff, []int{1001, 1005, 0, 1009, 1011, 1013, 1014, 3000, 4000, 4100, 4103, 4199, 4300, 4999}},
	} {
		for _, code := range h.codes {
			t.Run(fmt.Sprint(code), func(t *testing.T) {
				withService(t, func(t *testing.T, s *fakeService) {
					testCloseCode(t, s, code, h.closeAction)
				})
			})
		}
	}
}

// testCloseCode closes the client's connections with a code, and checks the longest
// of several random delays.
func testCloseCode(t *testing.T, s *fakeService, code int, want closeAction) {
	c := s.newClient(Options{})
	s.accept().closeWith(code)
	if want == actionStop || want == actionNewToken { // this client has no Options.Token
		if !s.noConnectionForAnHour() {
			t.Fatal("the client reconnected")
		}
		var closed *ClosedError
		if err := c.Err(); !errors.As(err, &closed) || closed.Code != code {
			t.Errorf("Err = %v", err)
		}
		<-c.Done()
		if err := c.Ready(t.Context()); !errors.As(err, &closed) {
			t.Errorf("Ready = %v", err)
		}
		return
	}
	var longest time.Duration
	for range 20 {
		closedAt := time.Now()
		p := s.accept()
		longest = max(longest, p.ConnectedAt.Sub(closedAt))
		// A second 4208 within 10 s would back off.
		time.Sleep(stableAfter - time.Millisecond)
		if code == codeSlow {
			time.Sleep(time.Millisecond)
		}
		p.closeWith(code)
	}
	switch {
	case want == actionReconnectSoon && (longest > time.Second || longest == 0):
		t.Errorf("reconnected after up to %v, want random delays of 0 to 1 s", longest)
	case want == actionBackOff && (longest < 3*time.Second || longest > 20*time.Second):
		t.Errorf("reconnected after up to %v, want growing delays of up to 20 s", longest)
	}
}

func TestBackoffGrowsWithJitterAndResets(t *testing.T) {
	now := time.Now()
	for failures, bound := range []time.Duration{
		500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
		8 * time.Second, 16 * time.Second, 20 * time.Second, 20 * time.Second,
	} {
		var longest time.Duration
		for range 400 {
			b := backoff{failures: failures, random: rand.Float64}
			d := b.next(actionBackOff, codeAbnormal, 0, now)
			if d < 0 || d >= bound {
				t.Fatalf("the delay after %d failures is %v, want less than %v", failures, d, bound)
			}
			longest = max(longest, d)
		}
		if longest < bound*8/10 {
			t.Errorf("after %d failures the longest delay is %v, want up to %v", failures, longest, bound)
		}
	}
	b := backoff{failures: 6, random: rand.Float64}
	if d := b.next(actionBackOff, codeAbnormal, stableAfter, now); d >= backoffMin || b.failures != 1 {
		t.Errorf("after 10 s live: a delay of %v, and %d failures", d, b.failures)
	}
	b = backoff{failures: 6, random: rand.Float64}
	if b.next(actionBackOff, codeAbnormal, stableAfter-1, now); b.failures != 7 {
		t.Errorf("after less than 10 s live: %d failures, want 7", b.failures)
	}
}

func TestAClientClosedAsSlowTwiceBacksOff(t *testing.T) {
	now := time.Now()
	var longest time.Duration
	for range 200 {
		b := backoff{failures: 6, random: rand.Float64}
		if d := b.next(actionReconnectSoon, codeSlow, 0, now); d >= time.Second {
			t.Fatalf("the delay after the first 4208 is %v", d)
		}
		longest = max(longest, b.next(actionReconnectSoon, codeSlow, 0, now.Add(9*time.Second)))
		if d := b.next(actionReconnectSoon, codeSlow, 0, now.Add(19*time.Second)); d >= time.Second {
			t.Fatalf("the delay after a 4208 10 s later is %v", d)
		}
		b.next(actionReconnectSoon, codeSlow, 0, now.Add(60*time.Second))
		if d := b.next(actionReconnectSoon, codeRestart, 0, now.Add(61*time.Second)); d >= time.Second {
			t.Fatalf("the delay after a restart that follows a 4208 is %v", d)
		}
	}
	if longest < 5*time.Second {
		t.Errorf("after two 4208 within 10 s the longest delay is %v, want more than 5 s", longest)
	}
}

func TestAFreshTokenIsRequestedAtEachConnect(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var mu sync.Mutex
		requests := 0
		s.refuseNext(0, http.StatusUnauthorized)
		s.newClient(Options{
			Header: http.Header{"X-App": {"chat"}},
			Token: func(context.Context) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				if requests++; requests == 2 {
					return "", errors.New("the token service is unavailable")
				}
				return fmt.Sprint("t", requests), nil
			},
		})
		s.accept().closeWith(4001)
		s.accept()
		var got []string
		for _, h := range s.headers {
			got = append(got, h.Get("Authorization")+" "+h.Get("X-App"))
		}
		if want := "Bearer t1 chat,Bearer t3 chat,Bearer t4 chat"; strings.Join(got, ",") != want {
			t.Errorf("the handshakes had %q, want %q", got, want)
		}
	})
}

// The service's own refusal of a handshake may be final. A proxy before it that answers
// the same status once in a while ends nothing.
func TestRefusedHandshakes(t *testing.T) {
	for _, c := range []struct {
		status  int
		problem string
		final   bool
	}{
		{http.StatusUnauthorized, "unauthorized", true},
		{http.StatusForbidden, "forbidden", true},
		{http.StatusServiceUnavailable, "unavailable", false},
		{http.StatusTooManyRequests, "rate_limited", false},
		{http.StatusUnauthorized, "", false},
		{http.StatusForbidden, "", false},
		{http.StatusForbidden, "bot_detected", false}, // the document of another service
		{http.StatusServiceUnavailable, "", false},
		{http.StatusTooManyRequests, "", false},
		{http.StatusBadGateway, "", false},
	} {
		t.Run(fmt.Sprint(c.status, c.problem), func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				s.refuseNextWith(c.problem, c.status)
				s.newClient(Options{})
				if s.noConnectionForAnHour() != c.final {
					t.Errorf("the client reconnected: %v, want %v", c.final, !c.final)
				}
			})
		})
	}
}

// A program that was live comes back after a proxy has refused one handshake.
func TestOne403OfAProxyDoesNotEndALiveClient(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		s.refuseNext(http.StatusForbidden)
		p.closeWith(0)
		p = s.accept()
		p.acceptJoin(2)
		p.message(2, "a", "null")
		got.want(t, "joined 1", "joined 2", "e/2")
		if err := c.Err(); err != nil {
			t.Errorf("the client has ended: %v", err)
		}
	})
}

func TestSilenceOfTwoHeartbeatsEndsAConnection(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.newClient(Options{})
		p := s.accept()
		for range 4 { // heartbeats keep it
			time.Sleep(25 * time.Second)
			p.send(`{"type":"heartbeat","at":"2026-01-02T15:04:05.000000Z"}`)
		}
		last := time.Now()
		p = s.accept()
		if silent := p.ConnectedAt.Sub(last); silent < 50*time.Second || silent > 51*time.Second {
			t.Errorf("reconnected %v after the last frame, want 50 s and a first backoff", silent)
		}
	})
}

// A frame that takes a slow link longer than two heartbeats arrives: its bytes count as
// life.
func TestALargeFrameArrivesOnASlowLink(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var seen eventLog
		s.newClient(Options{OnFrame: func(f Frame) { seen.add("%d %s %d", f.Connection, f.Type, f.Seq) }})
		p := s.accept()
		seen.want(t)
		w, err := p.WS.Writer(t.Context(), websocket.MessageText)
		if err != nil {
			t.Fatal(err)
		}
		parts := []string{`{"type":"message","room":"r","epoch":"e","seq":7,"id":"i","from":null,"at":"2026-01-02T15:04:05Z","data":"`}
		for range 20 {
			parts = append(parts, strings.Repeat("x", 6000))
		}
		for _, part := range append(parts, `"}`) {
			time.Sleep(10 * time.Second)
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		seen.want(t, "1 message 7")
		if s.noConnectionWaits() {
			return
		}
		t.Error("the client gave the connection up")
	})
}

func TestAConnectionWithoutAWelcomeTimesOut(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.newClient(Options{})
		first := s.acceptWithoutWelcome()
		second := s.acceptWithoutWelcome()
		if d := second.ConnectedAt.Sub(first.ConnectedAt); d < dialTimeout || d > dialTimeout+time.Second {
			t.Errorf("tried again after %v", d)
		}
		second.send(`{"type":"heartbeat"}`) // not a welcome, which must be the first frame
		s.accept()
	})
}

func TestInvalidFramesEndAConnectionAndUnknownTypesDoNot(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		p.send(`{"type":"presence","room":"r","count":3}`)
		p.send(`{"type":"left","room":"q"}`)
		p.send(`{"type":"error","code":"malformed","message":"what?"}`)
		p.send(`{"type":"message","room":"other","epoch":"e","seq":9,"id":"x","from":null,"at":"2026-01-02T15:04:05Z","data":1}`)
		p.message(2, "a", "null")
		got.want(t, "joined 1", "e/2")
		p.send(`not JSON`)
		s.accept().acceptJoin(2)
		got.want(t, "joined 1", "e/2", "joined 2")
	})
}

func TestTheNextURLIsTriedAfterAFailure(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.refuseNext(503, 503)
		s.newClient(Options{URLs: []string{"ws://one/ws", "ws://two/ws"}})
		s.accept().closeWith(1012) // a restart does not count against the URL
		s.accept()
		if got := strings.Join(s.urls, " "); got != "one two one one" {
			t.Errorf("the client tried %s", got)
		}
	})
}

func TestStatesAreReportedInOrder(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var got eventLog
		c := s.newClient(Options{OnState: func(e StateEvent) {
			got.add("%v %s %d", e.State, e.Welcome.Node, e.Code)
		}})
		p := s.accept()
		if err := c.Ready(t.Context()); err != nil || c.Welcome().Color != "blue" {
			t.Errorf("Ready = %v, Welcome = %+v", err, c.Welcome())
		}
		p.closeWith(1012)
		time.Sleep(time.Second)
		s.accept().closeWith(1008)
		got.want(t, "connecting  0", "live n1 0", "waiting  1012", "connecting  0", "live n1 0", "closed  1008")
	})
}

func TestCloseEndsTheConnectionWithANormalClose(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		ended := make(chan int, 1)
		go func() {
			_, _, err := p.WS.Read(context.Background())
			ended <- closeCode(err)
		}()
		start := time.Now()
		c.Close()
		if code := <-ended; code != 1000 {
			t.Errorf("closed with %d", code)
		}
		if !errors.Is(c.Err(), ErrClosed) || time.Since(start) != 0 {
			t.Errorf("Err = %v after %v", c.Err(), time.Since(start))
		}
		c.Close()
	})
}

func TestCloseWithAnUnresponsiveServiceIsBounded(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		s.accept()
		start := time.Now()
		c.Close()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}

func TestCloseEndsAClientThatNeverConnected(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.refuseNext(503, 503, 503, 503)
		c := s.newClient(Options{})
		time.Sleep(time.Second)
		c.Close()
		if err := c.Ready(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Ready = %v", err)
		}
	})
}

func TestDialWaitsForTheFirstConnection(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		opts := Options{URLs: []string{"ws://one/ws"}, HTTPClient: &http.Client{Transport: s.transport}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { // the service accepts the connection and sends nothing
			p := <-s.peers
			t.Cleanup(func() { _ = p.WS.CloseNow() })
		}()
		if _, err := Dial(ctx, opts); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial = %v", err)
		}
		s.refuseNextWith("forbidden", http.StatusForbidden)
		var closed *ClosedError
		if _, err := Dial(t.Context(), opts); !errors.As(err, &closed) || closed.Code != codeRemoved {
			t.Errorf("Dial = %v", err)
		}
		type result struct {
			c   *Client
			err error
		}
		dialed := make(chan result, 1)
		go func() {
			c, err := Dial(context.Background(), opts)
			dialed <- result{c, err}
		}()
		s.accept()
		if r := <-dialed; r.err != nil {
			t.Error(r.err)
		} else {
			r.c.Close()
		}
	})
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for _, urls := range [][]string{nil, {""}, {"http://h/ws"}, {"ws://h/ws", "h:80"}} {
		if c, err := New(Options{URLs: urls}); err == nil {
			c.Close()
			t.Errorf("%q was accepted", urls)
		}
	}
}

// A token source that does not look at its context delays neither the next attempt nor
// Close.
func TestATokenThatNeverComesIsNotAwaited(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		asked := make(chan struct{}, 10)
		never := make(chan struct{})
		defer close(never)
		c := s.newClient(Options{random: zeroRandom, Token: func(context.Context) (string, error) {
			asked <- struct{}{}
			<-never
			return "", nil
		}})
		begin := time.Now()
		<-asked
		<-asked
		if took := time.Since(begin); took != tokenTimeout {
			t.Errorf("the second token was requested after %v, want %v", took, tokenTimeout)
		}
		c.Close()
	})
}

// A program that waits for its first connection learns why there is none.
func TestDialSaysWhyTheLastAttemptFailed(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		s.refuseNext(http.StatusNotFound, http.StatusNotFound, http.StatusNotFound)
		logs := &testkit.Logs{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := s.newClient(Options{random: func() float64 { return 0.99 }, Logger: logs.Logger()})
		go func() { _ = s.acceptWithoutWelcome() }()
		err := c.Ready(ctx)
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "last attempt") {
			t.Errorf("Ready = %v, want the deadline and the last failure", err)
		}
		if logs.Count("two connections have failed") != 1 {
			t.Errorf("it logged %s", logs)
		}
		c.Close()
	})
}
