package client

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

func TestAPublishIsAcked(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		acked := publish(c, "r", "my-id") // before the first connection
		p := s.accept()
		f := p.expect("publish")
		if f.ID != "my-id" || f.Room != "r" || string(f.Data) != `{"a" : "<&>"}` {
			t.Errorf("sent %+v with data %s", f, f.Data)
		}
		p.send(`{"type":"ack","ref":%q,"room":"r","epoch":"e","seq":4,"id":"my-id","duplicate":true}`, f.Ref)
		if a := <-acked; a.err != nil || a.ack != (Ack{"r", "e", 4, "my-id", true}) {
			t.Errorf("Publish = %+v", a)
		}
		// The client's own ids are random.
		one, two := publish(c, "r", ""), publish(c, "r", "")
		a, b := p.expect("publish"), p.expect("publish")
		if a.ID == b.ID || message.CheckID(a.ID) != nil {
			t.Errorf("ids %q and %q", a.ID, b.ID)
		}
		p.ack(b, 6)
		p.ack(a, 5)
		if got := <-one; got.ack.Seq != 5 {
			t.Errorf("first: %+v", got)
		}
		if got := <-two; got.ack.Seq != 6 {
			t.Errorf("second: %+v", got)
		}
	})
}

func TestUnackedPublishesAreResentWithTheSameIDInOrder(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		one, two, three := publish(c, "r", "1"), publish(c, "r", "2"), publish(c, "q", "3")
		p.ack(p.expect("publish"), 1)
		p.expect("publish")
		p.expect("publish")
		<-one
		p.closeWith(0)
		four := publish(c, "r", "4")
		p = s.accept()
		for _, want := range []string{"2", "3", "4"} {
			f := p.expect("publish")
			if f.ID != want {
				t.Fatalf("resent %s, want %s", f.ID, want)
			}
			p.ack(f, 9)
		}
		for _, ch := range []<-chan ackResult{two, three, four} {
			if a := <-ch; a.err != nil {
				t.Error(a.err)
			}
		}
	})
}

func TestAClientsOwnMessageCountsAsItsAck(t *testing.T) {
	for name, c := range map[string]struct{ welcome, own, other string }{
		"anonymous": {`"user":null`, `null`, `"eve"`},
		"a user":    {`"user":"ann"`, `"ann"`, `null`},
	} {
		t.Run(name, func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				s.welcomeFields = c.welcome
				client := s.newClient(Options{})
				p := s.accept()
				send := func(data string) <-chan ackResult {
					out := make(chan ackResult, 1)
					if err := client.Send("r", []byte(data), "x", func(a Ack, err error) { out <- ackResult{a, err} }); err != nil {
						t.Fatal(err)
					}
					return out
				}
				acked := send(`4`)
				first := p.expect("publish")
				p.send(`{"type":"message","room":"r","epoch":"e","seq":4,"id":"x","from":%s,"at":"2026-01-02T15:04:05Z","data":4}`, c.other)
				stillPending(t, acked) // the x of another user
				p.message(4, "x", c.own)
				if a := <-acked; a.err != nil || a.ack.Seq != 4 || a.ack.Epoch != "e" {
					t.Errorf("Publish = %+v", a)
				}
				// Neither a late ack nor a late copy of the message completes a second
				// publish with the id, which the service refuses.
				reused := send(`5`)
				second := p.expect("publish")
				p.ack(first, 4)
				p.message(4, "x", c.own)
				stillPending(t, reused)
				p.refuse(second, "conflict", "")
				var refused *Error
				if a := <-reused; !errors.As(a.err, &refused) {
					t.Errorf("the second use: %+v", a)
				}
			})
		})
	}
}

func TestAfterUnavailableLaterPublishesWaitTheirTurn(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{random: zeroRandom})
		p := s.accept()
		one := publish(c, "r", "1")
		f1 := p.expect("publish")
		two := publish(c, "r", "2")
		f2 := p.expect("publish") // sent before the first refusal
		p.refuse(f2, "unavailable", `,"retry_after_ms":3000`)
		start := time.Now()
		p.refuse(f1, "unavailable", `,"retry_after_ms":3000`)
		synctest.Wait()
		three := publish(c, "r", "3")
		elsewhere := publish(c, "q", "4")
		if f := p.expect("publish"); f.ID != "4" {
			t.Fatalf("%s was sent, want 4: only its own room waits", f.ID)
		} else {
			p.ack(f, 1)
			<-elsewhere
		}
		// The oldest is resent alone, and refused again.
		f := p.expect("publish")
		if f.ID != "1" || time.Since(start) != 3*time.Second {
			t.Fatalf("%s was resent after %v, want 1 after 3 s", f.ID, time.Since(start))
		}
		p.refuse(f, "unavailable", "")
		f = p.expect("publish")
		if f.ID != "1" || time.Since(start) != 4*time.Second {
			t.Fatalf("%s was resent after %v, want 1 after 4 s", f.ID, time.Since(start))
		}
		stillPending(t, two)
		p.ack(f, 5)
		for i, want := range []string{"2", "3"} {
			f := p.expect("publish")
			if f.ID != want {
				t.Fatalf("%s was sent, want %s", f.ID, want)
			}
			p.ack(f, 6+i)
		}
		for i, ch := range []<-chan ackResult{one, two, three} {
			if a := <-ch; a.err != nil || a.ack.Seq != message.Seq(5+i) {
				t.Errorf("%d: %+v", i+1, a)
			}
		}
	})
}

func TestPublishesThatWaitStayInOrderAcrossAReconnect(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		one := publish(c, "r", "1")
		p.refuse(p.expect("publish"), "unavailable", `,"retry_after_ms":60000`)
		synctest.Wait()
		two := publish(c, "r", "2")
		p.closeWith(0)
		p = s.accept()
		f := p.expect("publish")
		if f.ID != "1" {
			t.Fatalf("%s was resent first", f.ID)
		}
		stillPending(t, two)
		p.ack(f, 1)
		p.ack(p.expect("publish"), 2)
		<-one
		if a := <-two; a.ack.Seq != 2 {
			t.Errorf("the second: %+v", a)
		}
	})
}

func TestAPermanentRefusalLetsLaterPublishesContinue(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		one := publish(c, "r", "1")
		p.refuse(p.expect("publish"), "rate_limited", `,"retry_after_ms":100`)
		synctest.Wait()
		two := publish(c, "r", "2")
		p.refuse(p.expect("publish"), "conflict", "")
		var refused *Error
		if a := <-one; !errors.As(a.err, &refused) || refused.Code != "conflict" {
			t.Errorf("the first: %v", a.err)
		}
		p.ack(p.expect("publish"), 2)
		if a := <-two; a.err != nil {
			t.Error(a.err)
		}
	})
}

func TestResendingEndsAfterHalfTheIDWindow(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{IDWindow: 10 * time.Minute})
		p := s.accept()
		start := time.Now()
		acked := publish(c, "r", "1")
		p.expect("publish")
		p.closeWith(0)
		// The test accepts no further connection.
		if a := <-acked; !errors.Is(a.err, ErrOutcomeUnknown) {
			t.Errorf("Publish = %v", a.err)
		}
		if waited := time.Since(start); waited != 5*time.Minute {
			t.Errorf("after %v, want half of the window", waited)
		}
	})
}

func TestACanceledPublishReportsWhetherItWasSent(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{MaxPending: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Publish(ctx, "r", []byte(`1`), "never-sent")
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("Publish = %v", err)
		}
		p := s.accept()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = c.Publish(ctx, "r", []byte(`1`), "sent")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("Publish = %v", err)
		}
		if f := p.expect("publish"); f.ID != "sent" {
			t.Errorf("sent %s", f.ID)
		}
		// The slot is free again, and so is the id.
		acked := publish(c, "r", "sent")
		p.ack(p.expect("publish"), 1)
		if a := <-acked; a.err != nil {
			t.Error(a.err)
		}
	})
}

func TestPendingPublishesAreBounded(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{MaxPending: 2})
		p := s.accept()
		one := publish(c, "r", "1")
		_ = publish(c, "r", "2")
		if err := c.Send("r", []byte(`1`), "3", nil); !errors.Is(err, ErrBusy) {
			t.Errorf("Send = %v", err)
		}
		three := publish(c, "r", "3") // waits for a slot
		f := p.expect("publish")
		p.expect("publish")
		p.ack(f, 1)
		<-one
		p.ack(p.expect("publish"), 3)
		if a := <-three; a.err != nil {
			t.Error(a.err)
		}
	})
}

func TestAPublishIsCheckedBeforeItIsSent(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		early := c.publishAsync(t, jsonStringOf1000Bytes()) // max_frame is not known yet
		s.accept()
		if a := <-early; !errors.Is(a.err, ErrTooLarge) {
			t.Errorf("Publish = %v", a.err)
		}
		_ = publish(c, "r", "used")
		var invalid *message.InvalidError
		for _, bad := range []struct {
			room message.Room
			id   string
			data string
			is   error
		}{
			{"r r", "x", `1`, nil},
			{"r", "x x", `1`, nil},
			{"r", "x", `{`, ErrInvalidData},
			{"r", "x", string(jsonStringOf1000Bytes()), ErrTooLarge},
			{"r", "used", `1`, ErrPending},
		} {
			_, err := c.Publish(t.Context(), bad.room, json.RawMessage(bad.data), bad.id)
			if err == nil || (bad.is != nil && !errors.Is(err, bad.is)) || (bad.is == nil && !errors.As(err, &invalid)) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	})
}

func (c *Client) publishAsync(t *testing.T, data []byte) <-chan ackResult {
	t.Helper()
	out := make(chan ackResult, 1)
	if err := c.Send("r", data, "", func(ack Ack, err error) { out <- ackResult{ack, err} }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestATooLargeFrameIsNotSentAgain(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		waiting := c.publishAsync(t, []byte(`"`+strings.Repeat("x", 800)+`"`))
		p.refuse(p.expect("publish"), "unavailable", `,"retry_after_ms":60000`)
		synctest.Wait()
		small := publish(c, "q", "small")
		big := make(chan ackResult, 1)
		_ = c.Send("q", []byte(`"`+strings.Repeat("x", 500)+`"`), "big", func(a Ack, err error) { big <- ackResult{a, err} })
		p.expect("publish")
		p.expect("publish")
		p.closeWith(1009)
		stillPending(t, waiting) // larger, but not sent on that connection
		if a := <-big; !errors.Is(a.err, ErrTooLarge) {
			t.Errorf("the big one: %v", a.err)
		}
		p = s.accept()
		for range 2 {
			f := p.expect("publish")
			if f.ID == "big" {
				t.Fatal("the big one was sent again")
			}
			p.ack(f, 1)
		}
		for _, ch := range []<-chan ackResult{small, waiting} {
			if a := <-ch; a.err != nil {
				t.Error(a.err)
			}
		}
	})
}

func TestCloseAnswersPendingCalls(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		s.accept()
		sent := publish(c, "r", "1")
		closed := make(chan struct{})
		go func() { c.Close(); close(closed) }()
		if a := <-sent; !errors.Is(a.err, ErrOutcomeUnknown) || !errors.Is(a.err, ErrClosed) {
			t.Errorf("Publish = %v", a.err)
		}
		<-closed
		if _, err := c.Publish(t.Context(), "r", []byte(`1`), ""); !errors.Is(err, ErrClosed) {
			t.Errorf("Publish after Close = %v", err)
		}
		if err := c.Send("r", []byte(`1`), "", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close = %v", err)
		}
		if _, err := c.Join(t.Context(), "r", Now(), Handler{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Join after Close = %v", err)
		}
		if _, err := c.History(t.Context(), "r", HistoryRange{}); !errors.Is(err, ErrClosed) {
			t.Errorf("History after Close = %v", err)
		}
		if err := c.Signal("r", []byte(`1`)); !errors.Is(err, ErrClosed) {
			t.Errorf("Signal after Close = %v", err)
		}
	})
}
