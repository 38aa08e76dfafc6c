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
	"time"
)

func TestEachCloseCodeIsHeeded(t *testing.T) {
	type habit struct {
		verdict
		codes []int
	}
	for _, h := range []habit{
		{stayAway, []int{1000, 1002, 1003, 1007, 1008, 4003, 4009}},
		{freshToken, []int{4001}},
		{comeBack, []int{1012, 4200, 4208, 4209, 4299}},
		{backOff, []int{1001, 1005, 0, 1009, 1011, 1013, 1014, 3000, 4000, 4100, 4103, 4199, 4300, 4999}},
	} {
		for _, code := range h.codes {
			t.Run(fmt.Sprint(code), func(t *testing.T) {
				story(t, func(t *testing.T, s *service) {
					testCloseCode(t, s, code, h.verdict)
				})
			})
		}
	}
}

// testCloseCode has four clients' worth of luck: it looks at the longest of
// several random waits.
func testCloseCode(t *testing.T, s *service, code int, want verdict) {
	c := s.open(Options{})
	s.accept().end(code)
	if want == stayAway || want == freshToken { // there is nobody to ask for a token
		if !s.staysAway() {
			t.Fatal("the client came back")
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
		left := time.Now()
		p := s.accept()
		longest = max(longest, p.at.Sub(left))
		// A 4208 that follows another within 10 s means something else.
		time.Sleep(steadyAfter - time.Millisecond)
		if code == codeSlow {
			time.Sleep(time.Millisecond)
		}
		p.end(code)
	}
	switch {
	case want == comeBack && (longest > time.Second || longest == 0):
		t.Errorf("came back after up to %v, want 0 to 1 s, random", longest)
	case want == backOff && (longest < 3*time.Second || longest > 20*time.Second):
		t.Errorf("came back after up to %v, want growing delays of up to 20 s", longest)
	}
}

func TestBackoffGrowsWithJitterAndForgets(t *testing.T) {
	now := time.Now()
	for failures, bound := range []time.Duration{
		500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
		8 * time.Second, 16 * time.Second, 20 * time.Second, 20 * time.Second,
	} {
		var longest time.Duration
		for range 400 {
			p := pacer{failures: failures, random: rand.Float64}
			d := p.next(backOff, codeAbnormal, 0, now)
			if d < 0 || d >= bound {
				t.Fatalf("after %d failures %v, want less than %v", failures, d, bound)
			}
			longest = max(longest, d)
		}
		if longest < bound*8/10 {
			t.Errorf("after %d failures at most %v of %v: the jitter is not full", failures, longest, bound)
		}
	}
	p := pacer{failures: 6, random: rand.Float64}
	if d := p.next(backOff, codeAbnormal, steadyAfter, now); d >= backoffMin || p.failures != 1 {
		t.Errorf("after 10 s live: %v, and %d failures", d, p.failures)
	}
	p = pacer{failures: 6, random: rand.Float64}
	if p.next(backOff, codeAbnormal, steadyAfter-1, now); p.failures != 7 {
		t.Errorf("a short life made the client forget: %d failures", p.failures)
	}
}

func TestASlowClientThatIsSlowAgainBacksOff(t *testing.T) {
	now := time.Now()
	var longest time.Duration
	for range 200 {
		p := pacer{failures: 6, random: rand.Float64}
		if d := p.next(comeBack, codeSlow, 0, now); d >= time.Second {
			t.Fatalf("the first time: %v", d)
		}
		longest = max(longest, p.next(comeBack, codeSlow, 0, now.Add(9*time.Second)))
		if d := p.next(comeBack, codeSlow, 0, now.Add(19*time.Second)); d >= time.Second {
			t.Fatalf("10 s later: %v", d)
		}
		p.next(comeBack, codeSlow, 0, now.Add(60*time.Second))
		if d := p.next(comeBack, codeRestart, 0, now.Add(61*time.Second)); d >= time.Second {
			t.Fatalf("a restart after a slow one: %v", d)
		}
	}
	if longest < 5*time.Second {
		t.Errorf("twice within 10 s: %v at most", longest)
	}
}

func TestAFreshTokenIsAskedForAtEachConnect(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		var mu sync.Mutex
		asked := 0
		s.refuseNext(0, http.StatusUnauthorized)
		s.open(Options{
			Header: http.Header{"X-App": {"chat"}},
			Token: func(context.Context) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				if asked++; asked == 2 {
					return "", errors.New("the token service is away")
				}
				return fmt.Sprint("t", asked), nil
			},
		})
		s.accept().end(4001)
		s.accept()
		var got []string
		for _, h := range s.headers {
			got = append(got, h.Get("Authorization")+" "+h.Get("X-App"))
		}
		if want := "Bearer t1 chat,Bearer t3 chat,Bearer t4 chat"; strings.Join(got, ",") != want {
			t.Errorf("handshakes with %q, want %q", got, want)
		}
	})
}

func TestRefusedHandshakes(t *testing.T) {
	for status, stays := range map[int]bool{
		http.StatusUnauthorized: true, http.StatusForbidden: true,
		http.StatusServiceUnavailable: false, http.StatusTooManyRequests: false, http.StatusBadGateway: false,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			story(t, func(t *testing.T, s *service) {
				s.refuseNext(status)
				s.open(Options{})
				if s.staysAway() != stays {
					t.Errorf("stays away: %v, want %v", !stays, stays)
				}
			})
		})
	}
}

func TestSilenceOfTwoHeartbeatsEndsAConnection(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		s.open(Options{})
		p := s.accept()
		for range 4 { // heartbeats keep it
			time.Sleep(25 * time.Second)
			p.send(`{"type":"heartbeat","at":"2026-01-02T15:04:05.000000Z"}`)
		}
		last := time.Now()
		p = s.accept()
		if silent := p.at.Sub(last); silent < 50*time.Second || silent > 51*time.Second {
			t.Errorf("came back %v after the last word, want 50 s and a first backoff", silent)
		}
	})
}

func TestAConnectionWithoutAWelcomeIsGivenUp(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		s.open(Options{})
		first := s.acceptSilently()
		second := s.acceptSilently()
		if d := second.at.Sub(first.at); d < dialTimeout || d > dialTimeout+time.Second {
			t.Errorf("tried again after %v", d)
		}
		second.send(`{"type":"heartbeat"}`) // not what comes first
		s.accept()
	})
}

func TestNonsenseEndsAConnectionAndWhatIsUnknownDoesNot(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		c := s.open(Options{})
		var got record
		got.join(c, "r", Now())
		p := s.accept()
		p.join(1)
		p.send(`{"type":"presence","room":"r","count":3}`)
		p.send(`{"type":"left","room":"q"}`)
		p.send(`{"type":"error","code":"malformed","message":"what?"}`)
		p.send(`{"type":"message","room":"other","epoch":"e","seq":9,"id":"x","from":null,"at":"2026-01-02T15:04:05Z","data":1}`)
		p.message(2, "a", "null")
		got.want(t, "joined 1", "e/2")
		p.send(`not JSON`)
		s.accept().join(2)
		got.want(t, "joined 1", "e/2", "joined 2")
	})
}

func TestAnotherAddressIsTriedAfterAFailure(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		s.refuseNext(503, 503)
		s.open(Options{URLs: []string{"ws://one/ws", "ws://two/ws"}})
		s.accept().end(1012) // and this one stays good
		s.accept()
		if got := strings.Join(s.urls, " "); got != "one two one one" {
			t.Errorf("tried %s", got)
		}
	})
}

func TestStatesAreToldInOrder(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		var got record
		c := s.open(Options{OnState: func(e StateEvent) {
			got.add("%v %s %d", e.State, e.Welcome.Node, e.Code)
		}})
		p := s.accept()
		if err := c.Ready(t.Context()); err != nil || c.Welcome().Color != "blue" {
			t.Errorf("Ready = %v, Welcome = %+v", err, c.Welcome())
		}
		p.end(1012)
		time.Sleep(time.Second)
		s.accept().end(1008)
		got.want(t, "connecting  0", "live n1 0", "waiting  1012", "connecting  0", "live n1 0", "closed  1008")
	})
}

func TestCloseSaysGoodbye(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		c := s.open(Options{})
		p := s.accept()
		ended := make(chan int, 1)
		go func() {
			_, _, err := p.conn.Read(context.Background())
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

func TestCloseOfADeafServiceIsBounded(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		c := s.open(Options{})
		s.accept()
		start := time.Now()
		c.Close()
		if took := time.Since(start); took > 2*goodbyeTimeout {
			t.Errorf("Close took %v", took)
		}
	})
}

func TestCloseEndsAClientThatNeverConnected(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		s.refuseNext(503, 503, 503, 503)
		c := s.open(Options{})
		time.Sleep(time.Second)
		c.Close()
		if err := c.Ready(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Ready = %v", err)
		}
	})
}

func TestDialWaitsForTheFirstConnection(t *testing.T) {
	story(t, func(t *testing.T, s *service) {
		opts := Options{URLs: []string{"ws://one/ws"}, HTTPClient: &http.Client{Transport: s.transport}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { // the service takes the connection and says nothing
			p := <-s.peers
			t.Cleanup(func() { _ = p.conn.CloseNow() })
		}()
		if _, err := Dial(ctx, opts); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial = %v", err)
		}
		s.refuseNext(http.StatusForbidden)
		var closed *ClosedError
		if _, err := Dial(t.Context(), opts); !errors.As(err, &closed) || closed.Code != codeRemoved {
			t.Errorf("Dial = %v", err)
		}
		type result struct {
			c   *Client
			err error
		}
		dialled := make(chan result, 1)
		go func() {
			c, err := Dial(context.Background(), opts)
			dialled <- result{c, err}
		}()
		s.accept()
		if r := <-dialled; r.err != nil {
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
