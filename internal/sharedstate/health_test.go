package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A redisError is an error reply of Redis.
type redisError string

func (s redisError) Error() string { return string(s) }
func (redisError) RedisError()     {}

func TestRedisErrorsAreClassified(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, tt := range []struct {
		name        string
		errs        []error
		state       string
		unavailable bool // the returned error wraps ErrSharedStateUnavailable
	}{
		{"no error", []error{nil, nil}, stateUp, false},
		{"connections refused", []error{refused, refused}, stateDown, true},
		{"no answer", []error{context.DeadlineExceeded}, stateDown, true},
		{"a connection cut", []error{io.EOF}, stateDown, true},
		{"one master of several down", []error{nil, refused, nil}, stateUp, true},
		{"out of memory", []error{redisError("OOM command not allowed"), redisError("OOM command not allowed")}, stateRefused, false},
		{"a missing right", []error{nil, redisError("NOPERM this user has no permissions")}, stateRefused, false},
		{"a snapshot that failed", []error{redisError("MISCONF Redis is configured to save RDB snapshots")}, stateRefused, false},
		{"replicas that are missing", []error{redisError("NOREPLICAS Not enough good replicas to write.")}, stateRefused, false},
		{"no password", []error{redisError("NOAUTH Authentication required.")}, stateRefused, false},
		{"a key of another kind", []error{nil, redisError("WRONGTYPE Operation against a key")}, stateUp, false},
		{"a replica", []error{redisError("READONLY You can't write against a read only replica.")}, stateDown, true},
		{"loading", []error{redisError("LOADING Redis is loading the dataset in memory")}, stateDown, true},
		{"a cluster that is down", []error{redisError("CLUSTERDOWN The cluster is down")}, stateDown, true},
		{"a slot that moves", []error{redisError("TRYAGAIN Multiple keys request during rehashing of slot")}, stateDown, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			p := &testNode{reg: reg, logs: new(testkit.Logs)}
			h := newHealth(p.logs.Logger(), newMetrics(reg))
			var all int
			for range 3 {
				errs := append([]error(nil), tt.errs...)
				err := h.record(t.Context(), opSave, time.Millisecond, errs)
				bad := 0
				for i, e := range errs {
					if tt.errs[i] == nil != (e == nil) {
						t.Errorf("part %d: %v became %v", i, tt.errs[i], e)
					}
					if e != nil {
						bad++
					}
				}
				if (err != nil) != (bad > 0) || errors.Is(err, message.ErrSharedStateUnavailable) != tt.unavailable {
					t.Errorf("returned %v", err)
				}
				all += bad
			}
			if h.state() != tt.state || (p.metric(t, "session_up", "") == 1) != (tt.state == stateUp) {
				t.Errorf("state: %v", h.state())
			}
			if got := p.logs.Count("level=WARN"); all > 0 && tt.state != stateDown && !tt.unavailable && got != 1 || tt.state == stateDown && got != 1 || all == 0 && got != 0 {
				t.Errorf("%d warnings:\n%s", got, p.logs)
			}
			want := 0.0
			if all > 0 {
				want = 3
			}
			if got := p.metric(t, "session_failures_total", "save"); got != want {
				t.Errorf("%v failures counted, want %v", got, want)
			}
		})
	}
}

// While Redis is down one call a second finds out whether it is back; the others
// do not wait for it.
func TestOneCallASecondProbesRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth(new(testkit.Logs).Logger(), newMetrics(nil))
		fail := func() { _ = h.record(t.Context(), opSave, 0, []error{io.EOF}) }
		if !h.mayTry(opSave) || h.isBackingOff() {
			t.Error("the first call is not attempted")
		}
		fail()
		for second := range 5 {
			if h.mayTry(opSave) || h.mayTry(opQuery) || !h.isBackingOff() {
				t.Errorf("second %d: a call was attempted at once", second)
			}
			if !h.mayTry(opHeartbeat) {
				t.Error("the heartbeat is not attempted")
			}
			time.Sleep(retryInterval)
			tries := 0
			for range 100 {
				if h.mayTry(opSave) {
					tries++
				}
			}
			if tries != 1 {
				t.Errorf("second %d: %d attempts, want 1", second, tries)
			}
			fail()
		}
		_ = h.record(t.Context(), opHeartbeat, 0, []error{nil})
		if !h.mayTry(opSave) || h.isBackingOff() || h.state() != stateUp {
			t.Error("calls are not attempted though Redis is back")
		}
	})
}

// An outage is logged once, and its cause too if it becomes known later.
func TestTheCauseOfAnOutageIsLogged(t *testing.T) {
	p := &testNode{logs: new(testkit.Logs)}
	h := newHealth(p.logs.Logger(), newMetrics(nil))
	for range 3 { // outages
		_ = h.record(t.Context(), opHeartbeat, 0, []error{nil})
		for range 5 {
			_ = h.record(t.Context(), opSave, 0, []error{context.DeadlineExceeded})
		}
		for range 5 {
			_ = h.record(t.Context(), opSave, 0, []error{errors.New("certificate signed by unknown authority")})
			_ = h.record(t.Context(), opSave, 0, []error{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}})
		}
	}
	for text, want := range map[string]int{"can't be reached: sessions": 3, "the reason why Redis can't": 3, "unknown authority": 3, "Redis can be reached": 3} {
		if got := p.logs.Count(text); got != want {
			t.Errorf("%q is logged %d times, want %d:\n%s", text, got, want, p.logs)
		}
	}
}

// Calls that end because the node closes say nothing about Redis.
func TestOurOwnShutdownIsNoOutage(t *testing.T) {
	p := &testNode{logs: new(testkit.Logs), reg: prometheus.NewRegistry()}
	h := newHealth(p.logs.Logger(), newMetrics(p.reg))
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.record(ctx, opSave, 0, []error{fmt.Errorf("write: %w", net.ErrClosed)}); !errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("returned %v", err)
	}
	if h.state() != stateUp || p.logs.Count("WARN") != 0 || p.metric(t, "session_failures_total", "") != 0 {
		t.Errorf("state %v, log:\n%s", h.state(), p.logs)
	}
}

// If Redis refuses some operations, each is logged once.
func TestARefusalIsLoggedPerOperation(t *testing.T) {
	p := &testNode{logs: new(testkit.Logs)}
	h := newHealth(p.logs.Logger(), newMetrics(nil))
	full := []error{redisError("OOM command not allowed")}
	for range 3 {
		for _, op := range []string{opSave, opPresence} {
			_ = h.record(t.Context(), op, 0, append([]error(nil), full...))
			_ = h.record(t.Context(), opEvent, 0, []error{nil})
		}
	}
	for text, want := range map[string]int{
		`msg="Redis refuses" operation=save`: 1, `msg="Redis refuses" operation=presence`: 1, "no longer refuses": 0, "can't be reached": 0,
	} {
		if got := p.logs.Count(text); got != want {
			t.Errorf("%q is logged %d times, want %d:\n%s", text, got, want, p.logs)
		}
	}
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	if got := p.logs.Count("no longer refuses"); got != 1 {
		t.Errorf("the end is logged %d times, want 1", got)
	}
}

// A refusal counts until Redis has stored again for a while, and no longer.
func TestARefusalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &testNode{logs: new(testkit.Logs), reg: prometheus.NewRegistry()}
		h := newHealth(p.logs.Logger(), newMetrics(p.reg))
		beat := func(err error) {
			_ = h.record(t.Context(), opHeartbeat, 0, []error{err})
			time.Sleep(heartbeatInterval)
		}
		for range 20 {
			beat(redisError("OOM command not allowed"))
			if h.state() != stateRefused || p.metric(t, "session_up", "") != 0 {
				t.Fatalf("state %s while Redis refuses", h.state())
			}
		}
		beats := 0
		for ; p.metric(t, "session_up", "") == 0; beats++ {
			beat(nil)
		}
		if beats < 3 || beats > 6 || h.state() != stateUp {
			t.Errorf("after %d heartbeats that were stored: %s", beats, h.state())
		}
	})
}
