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
)

// redisError is an error as Redis says it.
type redisError string

func (s redisError) Error() string { return string(s) }
func (redisError) RedisError()     {}

func TestRedisErrorsAreClassified(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, tt := range []struct {
		name string
		errs []error
		up   bool
		away bool // the error that is returned wraps ErrSharedStateUnavailable
	}{
		{"all well", []error{nil, nil}, true, false},
		{"nobody there", []error{refused, refused}, false, true},
		{"no answer", []error{context.DeadlineExceeded}, false, true},
		{"cut", []error{io.EOF}, false, true},
		{"one master of several away", []error{nil, refused, nil}, true, true},
		{"refused", []error{redisError("OOM command not allowed"), redisError("OOM command not allowed")}, true, false},
		{"no right", []error{nil, redisError("NOPERM this user has no permissions")}, true, false},
		{"put back behind another", []error{redisError("READONLY You can't write against a read only replica.")}, false, true},
		{"still reading its data", []error{redisError("LOADING Redis is loading the dataset in memory")}, false, true},
		{"a cluster in two", []error{redisError("CLUSTERDOWN The cluster is down")}, false, true},
		{"a slot on its way", []error{redisError("TRYAGAIN Multiple keys request during rehashing of slot")}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			p := &testNode{reg: reg, logs: &logs{}}
			h := newHealth(loggerOf(p.logs), newMetrics(reg))
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
				if (err != nil) != (bad > 0) || errors.Is(err, message.ErrSharedStateUnavailable) != tt.away {
					t.Errorf("returned %v", err)
				}
				all += bad
			}
			if h.isUp() != tt.up || (p.metric(t, "session_up", "") == 1) != tt.up {
				t.Errorf("up: %v", h.isUp())
			}
			if got := p.logs.count("level=WARN"); all > 0 && tt.up && !tt.away && got != 1 || !tt.up && got != 1 || all == 0 && got != 0 {
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

// While Redis is away one call a second finds out whether it is back; nobody
// else waits for it.
func TestOneCallASecondProbesRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth(loggerOf(&logs{}), newMetrics(nil))
		away := func() { _ = h.record(t.Context(), opSave, 0, []error{io.EOF}) }
		if !h.mayTry(opSave) || h.isBackingOff() {
			t.Error("not tried though nothing is known")
		}
		away()
		for second := range 5 {
			if h.mayTry(opSave) || h.mayTry(opQuery) || !h.isBackingOff() {
				t.Errorf("second %d: tried at once", second)
			}
			if !h.mayTry(opHeartbeat) {
				t.Error("the beat is not tried")
			}
			time.Sleep(retryInterval)
			tries := 0
			for range 100 {
				if h.mayTry(opSave) {
					tries++
				}
			}
			if tries != 1 {
				t.Errorf("second %d: %d tries", second, tries)
			}
			away()
		}
		_ = h.record(t.Context(), opHeartbeat, 0, []error{nil})
		if !h.mayTry(opSave) || h.isBackingOff() || !h.isUp() {
			t.Error("not tried though Redis is back")
		}
	})
}

// An outage is told once; when its cause comes to light later, that too.
func TestTheCauseOfAnOutageIsLogged(t *testing.T) {
	p := &testNode{logs: &logs{}}
	h := newHealth(loggerOf(p.logs), newMetrics(nil))
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
	for text, want := range map[string]int{"can't be reached: sessions": 3, "why Redis can't": 3, "unknown authority": 3, "Redis can be reached": 3} {
		if got := p.logs.count(text); got != want {
			t.Errorf("%q is told %d times, want %d:\n%s", text, got, want, p.logs)
		}
	}
}

// What ends because we end says nothing of Redis.
func TestOurOwnShutdownIsNoOutage(t *testing.T) {
	p := &testNode{logs: &logs{}, reg: prometheus.NewRegistry()}
	h := newHealth(loggerOf(p.logs), newMetrics(p.reg))
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.record(ctx, opSave, 0, []error{fmt.Errorf("write: %w", net.ErrClosed)}); !errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("returned %v", err)
	}
	if !h.isUp() || p.logs.count("WARN") != 0 || p.metric(t, "session_failures_total", "") != 0 {
		t.Errorf("up %v, log:\n%s", h.isUp(), p.logs)
	}
}

// Redis that refuses one thing and takes the next is told of each.
func TestARefusalIsLoggedPerOperation(t *testing.T) {
	p := &testNode{logs: &logs{}}
	h := newHealth(loggerOf(p.logs), newMetrics(nil))
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
		if got := p.logs.count(text); got != want {
			t.Errorf("%q is told %d times, want %d:\n%s", text, got, want, p.logs)
		}
	}
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	_ = h.record(t.Context(), opSave, 0, []error{nil})
	if got := p.logs.count("no longer refuses"); got != 1 {
		t.Errorf("told %d times that it is over", got)
	}
}
