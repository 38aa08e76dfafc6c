package testkit

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A failingTB records a failure instead of failing the test.
type failingTB struct {
	testing.TB
	failure string
}

func (f *failingTB) Helper() {}

// Fatalf ends the goroutine, as that of a real test does.
func (f *failingTB) Fatalf(format string, args ...any) {
	f.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failureOf returns the failure of a function that gets a test.
func failureOf(use func(testing.TB)) string {
	f := new(failingTB)
	done := make(chan struct{})
	go func() {
		defer close(done)
		use(f)
	}()
	<-done
	return f.failure
}

func TestEventuallyWaitsForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for after, want := range map[time.Duration]string{
			0: "", 59 * time.Second: "", 61 * time.Second: "not within 1m0s: the node to be ready",
		} {
			begin := time.Now()
			got := failureOf(func(tb testing.TB) {
				Eventually(tb, "the node to be ready", func() bool { return time.Since(begin) >= after })
			})
			if got != want {
				t.Errorf("true after %v: %q, want %q", after, got, want)
			}
			if waited := time.Since(begin); waited > after+pollInterval {
				t.Errorf("true after %v: waited %v", after, waited)
			}
		}
		got := failureOf(func(tb testing.TB) {
			EventuallyNil(tb, "the node to be ready", func() error { return fmt.Errorf("it is starting") })
		})
		if got != "not within 1m0s: the node to be ready: it is starting" {
			t.Errorf("an error that stays: %q", got)
		}
	})
}

func TestWithinEndsWithItsTimeAndWithTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := Within(t, time.Second)
		time.Sleep(time.Second)
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the context has not ended after its time")
		}
	})
	var ended <-chan struct{}
	t.Run("a test", func(t *testing.T) { ended = Within(t, time.Hour).Done() })
	select {
	case <-ended:
	default:
		t.Error("the context has not ended with its test")
	}
}

func TestLogsAreReadWhileTheyAreWritten(t *testing.T) {
	var l Logs
	logger := l.Logger()
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range 100 {
			logger.Debug("one line")
		}
	}()
	Eventually(t, "the last line", func() bool { return l.Count("one line") == 100 })
	<-written
	if n := strings.Count(l.String(), "level=DEBUG"); n != 100 {
		t.Errorf("%d of 100 lines", n)
	}
}

// A port from 32768 on may be in use by an outgoing connection when the server that
// had it starts again.
func TestFreePortsAreBelowThoseOfOutgoingConnections(t *testing.T) {
	for range 200 {
		if port := FreePort(); port < 10_000 || port >= 32_768 {
			t.Fatalf("port %d", port)
		}
	}
}

func TestSlotsOfAClusterNode(t *testing.T) {
	const line = "id 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-5461 7000 [9300-<-id]"
	for slot, want := range map[int]bool{0: true, 5461: true, 5462: false, 7000: true, 7001: false, 9300: false} {
		if got := hasSlot(line, slot); got != want {
			t.Errorf("slot %d: %v", slot, got)
		}
	}
	if hasSlot("id 127.0.0.1:1@2 master - 0 0 1 connected", 0) {
		t.Error("a node without slots has slot 0")
	}
}
