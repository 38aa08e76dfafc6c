package client

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
)

// A slowHandler is a handler whose Message runs until it is released, and a callback of
// Send that must not run meanwhile. Its fields are not synchronized except by the rule
// that callbacks run one at a time.
type slowHandler struct {
	began, release chan struct{}
	running        bool
	overlapped     bool
	outcomes       []error
	called         atomic.Int32
}

func newSlowHandler() *slowHandler {
	return &slowHandler{began: make(chan struct{}), release: make(chan struct{})}
}

func (h *slowHandler) handler() Handler {
	return Handler{Message: func(message.Message) {
		h.running = true
		close(h.began)
		<-h.release
		h.running = false
	}}
}

func (h *slowHandler) done(_ Ack, err error) {
	h.called.Add(1)
	h.overlapped = h.overlapped || h.running
	h.outcomes = append(h.outcomes, err)
}

// end gives a callback that does not wait for the handler the time to run, and releases
// the handler. The bubble does not rest while a lock is waited for.
func (h *slowHandler) end(t *testing.T, want error) {
	t.Helper()
	for range 10_000 {
		runtime.Gosched()
	}
	if h.called.Load() > 0 {
		t.Error("Send's callback ran while a handler ran")
	}
	close(h.release)
	synctest.Wait()
	if len(h.outcomes) != 1 || !errors.Is(h.outcomes[0], want) || h.overlapped {
		t.Errorf("Send's callback got %v, want %v once, and alone", h.outcomes, want)
	}
}

// The time for which a publish is sent again is over while a handler runs.
func TestAnExpiredPublishWaitsForTheHandlerThatRuns(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{IDWindow: 10 * time.Second})
		h := newSlowHandler()
		go func() { _, _ = c.Join(context.Background(), "r", Now(), h.handler()) }()
		p := s.accept()
		p.acceptJoin(2)
		if err := c.Send("r", []byte(`1`), "x", h.done); err != nil {
			t.Fatal(err)
		}
		p.expect("publish")
		p.message(3, "a", "null")
		<-h.began
		time.Sleep(5 * time.Second)
		h.end(t, ErrOutcomeUnknown)
	})
}

// The old connection of a move is closed for a publish that is too large, while a
// handler runs for a message of the new one.
func TestATooLargePublishWaitsForTheHandlerThatRuns(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		h := newSlowHandler()
		go func() { _, _ = c.Join(context.Background(), "r", Now(), h.handler()) }()
		first := s.accept()
		first.acceptJoin(2)
		if err := c.Send("r", []byte(`1`), "x", h.done); err != nil {
			t.Fatal(err)
		}
		first.expect("publish")
		go func() { _, _ = c.Join(context.Background(), "q", Now(), Handler{}) }()
		first.acceptJoin(0)
		first.move(0, 60_000)
		second := s.acceptWithoutWelcome()
		second.welcome("n2")
		second.expect("moved")
		for range 2 {
			if f := second.expect("join"); f.Room == "r" { // q has no answer, so the move goes on
				second.send("%s", f.Joined("e", 2))
			}
		}
		second.message(3, "a", "null")
		<-h.began
		_ = first.WS.Close(websocket.StatusMessageTooBig, "scripted")
		h.end(t, ErrTooLarge)
	})
}

// A handler may publish and wait. No answer is read meanwhile, so it waits as long as the
// publish is sent again, and not for ever.
func TestAPublishInAHandlerEnds(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{IDWindow: 10 * time.Second})
		outcome := make(chan error, 1)
		go func() {
			_, _ = c.Join(context.Background(), "r", Now(), Handler{Message: func(message.Message) {
				_, err := c.Publish(context.Background(), "r", []byte(`1`), "x")
				outcome <- err
			}})
		}()
		p := s.accept()
		p.acceptJoin(2)
		p.message(3, "a", "null")
		p.expect("publish")
		began := time.Now()
		if err := <-outcome; !errors.Is(err, ErrOutcomeUnknown) || time.Since(began) != 5*time.Second {
			t.Errorf("Publish = %v after %v", err, time.Since(began))
		}
	})
}
