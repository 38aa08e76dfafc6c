package client

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFrameOfExactlyMaxFrameIsSent(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept() // max_frame is 1000
		around := len(`{"type":"publish","ref":"r1","room":"r","id":"x","data":""}`)
		data := func(size int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", size-around) + `"`) }
		if err := c.Send("r", data(1001), "x", nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Send of 1001 bytes = %v", err)
		}
		if err := c.Send("r", data(1000), "x", func(Ack, error) {}); err != nil {
			t.Fatalf("Send of 1000 bytes = %v", err)
		}
		p.expect("publish")
	})
}

// Without heartbeat_ms the client could not notice a silent connection.
func TestAWelcomeWithoutLimitsIsAFailure(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		states := new(eventLog)
		s.newClient(Options{random: zeroRandom, OnState: func(e StateEvent) { states.add("%v", e.State) }})
		for _, welcome := range []string{
			`{"type":"welcome","node":"n1","max_frame":1000}`, `{"type":"welcome","node":"n1","heartbeat_ms":25000}`,
		} {
			s.acceptWithoutWelcome().send("%s", welcome)
		}
		s.accept()
		states.want(t, "connecting", "waiting", "connecting", "waiting", "connecting", "live")
	})
}

func TestAnInvalidPublishKeepsNoSlot(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{MaxPending: 1})
		p := s.accept()
		for range 3 {
			if err := c.Send("r", json.RawMessage(`{`), "", nil); !errors.Is(err, ErrInvalidData) {
				t.Errorf("Send = %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := c.Publish(ctx, "r", json.RawMessage(`{`), ""); !errors.Is(err, ErrInvalidData) {
				t.Errorf("Publish = %v", err)
			}
		}
		acked := publish(c, "r", "x")
		p.ack(p.expect("publish"), 1)
		if a := <-acked; a.err != nil {
			t.Error(a.err)
		}
	})
}

func TestAPublishThatWaitsForASlotEndsWithTheClient(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{MaxPending: 1})
		p := s.accept()
		sent := publish(c, "r", "1")
		p.expect("publish")
		waiting := publish(c, "r", "2")
		p.closeWith(codePolicy)
		<-sent
		var closed *ClosedError
		if a := <-waiting; !errors.As(a.err, &closed) || errors.Is(a.err, ErrOutcomeUnknown) {
			t.Errorf("Publish = %v", a.err)
		}
	})
}

func TestARequestWhoseCallerGaveUpIsNotRepeated(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.History(ctx, "r", HistoryRange{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("History = %v", err)
		}
		p.expect("history")
		p.closeWith(0)
		p = s.accept()
		acked := publish(c, "r", "x")
		p.ack(p.expect("publish"), 1) // the first frame on the new connection
		<-acked
	})
}

// A message that was sent just before Close still reaches the service.
func TestFramesBeforeCloseAreWritten(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		for range 3 {
			if err := c.Send("r", json.RawMessage(`1`), "", func(Ack, error) {}); err != nil {
				t.Fatal(err)
			}
		}
		go c.Close()
		synctest.Wait()
		for range 3 {
			p.expect("publish")
		}
	})
}
