package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit/fakeservice"
)

func TestAUserWhoseConnectionBreaksSeesEveryMessageOnce(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		joined := got.join(c, "r", Now())
		p := s.accept()
		if f := p.acceptJoin(7); f.After != nil || f.Epoch != "" {
			t.Errorf("a join from now sent %+v", f)
		}
		if j := <-joined; j.err != nil || j.joined.Head != 7 || j.joined.First != 1 {
			t.Errorf("Join = %+v", j)
		}
		p.message(8, "a", "null")
		p.message(9, "b", `"bob"`)
		p.closeWith(0)

		p = s.accept()
		if f := p.acceptJoin(11); f.After == nil || *f.After != 9 || f.Epoch != "e" {
			t.Errorf("the rejoin sent %+v, want after 9 in e", f)
		}
		p.message(9, "b", `"bob"`) // a duplicate
		p.message(10, "c", "null")
		p.message(11, "d", "null")
		got.want(t, "joined 7", "e/8", "e/9", "joined 11", "e/10", "e/11")
		if at, ok := c.Position("r"); !ok || at != After("e", 11) {
			t.Errorf("Position = %+v, %v", at, ok)
		}
	})
}

// The client reads frames that are larger than its library's usual limit of 32 KiB, and as
// large as docs/protocol.md says.
func TestTheLargestFramesAreRead(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(7)
		for i, size := range []int{40_000, 1 << 20} {
			data := []byte(`"` + strings.Repeat("x", size) + `"`)
			p.send("%s", fakeservice.Frame{Room: "r", ID: "a", Data: data}.Message("e", 8+i, "null"))
		}
		got.want(t, "joined 7", "e/8", "e/9")
	})
}

func TestABreakBeforeTheFirstMessageLosesNothing(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(7)
		p.closeWith(0)
		if f := s.accept().acceptJoin(9); f.After == nil || *f.After != 7 {
			t.Errorf("rejoined with %+v, want after 7", f)
		}
	})
}

func TestAJoinStartsAtThePositionGiven(t *testing.T) {
	for name, c := range map[string]struct {
		from  Position
		after message.Seq
		epoch message.Epoch
	}{
		"the start":  {Start(), 0, ""},
		"a position": {After("e", 3), 3, "e"},
	} {
		t.Run(name, func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				client := s.newClient(Options{})
				var got eventLog
				got.join(client, "r", c.from)
				p := s.accept()
				f := p.acceptJoin(int(c.after) + 1)
				if f.After == nil || *f.After != c.after || f.Epoch != c.epoch {
					t.Errorf("the join sent %+v", f)
				}
				p.message(int(c.after)+1, "x", "null")
				synctest.Wait()
				if at, _ := client.Position("r"); at != After("e", c.after+1) {
					t.Errorf("Position = %+v", at)
				}
			})
		})
	}
}

func TestGapsAreReportedAndSkipped(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", After("e", 2))
		p := s.accept()
		p.acceptJoin(9)
		p.send(`{"type":"gap","room":"r","epoch":"e","from":3,"to":5,"reason":"trimmed"}`)
		p.message(6, "a", "null")
		p.send(`{"type":"gap","room":"r","epoch":"e","from":3,"to":5,"reason":"trimmed"}`) // a duplicate
		p.send(`{"type":"gap","room":"r","epoch":"f","from":1,"to":4,"reason":"epoch"}`)
		p.send(`{"type":"message","room":"r","epoch":"f","seq":5,"id":"x","from":null,"at":"2026-01-02T15:04:05Z","data":1}`)
		got.want(t, "joined 9", "gap e 3-5 trimmed", "e/6", "gap f 1-4 epoch", "f/5")
	})
}

func TestAnUnannouncedEpochIsReportedAsAGap(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(9)
		p.send(`{"type":"message","room":"r","epoch":"f","seq":3,"id":"x","from":null,"at":"2026-01-02T15:04:05Z","data":1}`)
		p.send(`{"type":"message","room":"r","epoch":"f","seq":4,"id":"y","from":null,"at":"2026-01-02T15:04:05Z","data":1}`)
		got.want(t, "joined 9", "gap f 1-2 epoch", "f/3", "f/4")
	})
}

func TestASkippedMessageIsRequestedAgain(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		p.message(2, "a", "null")
		p.message(4, "c", "null")
		if f := p.acceptJoin(4); *f.After != 2 {
			t.Errorf("rejoined after %d, want 2", *f.After)
		}
		p.message(3, "b", "null")
		p.message(4, "c", "null")
		got.want(t, "joined 1", "e/2", "joined 4", "e/3", "e/4")
	})
}

func TestMessagesOfAnEarlierJoinAreIgnored(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var first, second eventLog
		first.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		first.want(t, "joined 1")
		c.Leave("r")
		c.Leave("r")
		if f := p.expect("leave"); f.Room != "r" {
			t.Errorf("left %q", f.Room)
		}
		p.message(2, "a", "null")
		second.join(c, "r", After("e", 2))
		p.message(3, "b", "null") // of the first join
		p.acceptJoin(4)
		p.message(3, "b", "null")
		second.want(t, "joined 4", "e/3")
		first.want(t, "joined 1")
	})
}

func TestALateAnswerToAnEarlierJoinIsIgnored(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		var first, second eventLog
		left := first.join(c, "r", Now())
		p := s.accept()
		early := p.expect("join")
		c.Leave("r")
		if j := <-left; !errors.Is(j.err, ErrLeft) {
			t.Errorf("Join = %v", j.err)
		}
		p.expect("leave")
		joined := second.join(c, "r", Now())
		late := p.expect("join")
		p.send(`{"type":"joined","ref":%q,"room":"r","epoch":"e","seq":3,"first":1}`, early.Ref)
		p.message(4, "a", "null") // of the first join
		stillPending(t, joined)
		p.send(`{"type":"joined","ref":%q,"room":"r","epoch":"e","seq":4,"first":1}`, late.Ref)
		p.message(5, "b", "null")
		second.want(t, "joined 4", "e/5")
		first.want(t)
	})
}

func TestRefusedJoins(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{random: zeroRandom})
		var got, other eventLog
		joined := got.join(c, "r", Now())
		p := s.accept()
		p.refuse(p.expect("join"), "forbidden", "")
		var refused *Error
		if j := <-joined; !errors.As(j.err, &refused) || refused.Code != "forbidden" {
			t.Fatalf("Join = %v", j.err)
		}

		// After a temporary error the client joins again when the service asks for it.
		start := time.Now()
		joined = got.join(c, "r", Now())
		p.refuse(p.expect("join"), "unavailable", `,"retry_after_ms":3000`)
		p.acceptJoin(5)
		if j := <-joined; j.err != nil || time.Since(start) != 3*time.Second {
			t.Fatalf("joined after %v: %v", time.Since(start), j.err)
		}

		// The user may lose the right to join between two connections.
		other.join(c, "r2", Now())
		p.acceptJoin(1)
		p.closeWith(0)
		p = s.accept()
		for range 2 {
			if f := p.expect("join"); f.Room == "r" {
				p.refuse(f, "forbidden", "")
			} else {
				p.send(`{"type":"joined","ref":%q,"room":%q,"epoch":"e","seq":1,"first":1}`, f.Ref, f.Room)
			}
		}
		got.want(t, "joined 5", "ended the service answered forbidden: no")
		other.want(t, "joined 1", "joined 1")
	})
}

func TestAJoinIsCheckedBeforeItIsSent(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		var invalid *message.InvalidError
		if _, err := c.Join(t.Context(), "no spaces", Now(), Handler{}); !errors.As(err, &invalid) {
			t.Errorf("Join = %v", err)
		}
		var got eventLog
		got.join(c, "r", Now())
		if _, err := c.Join(t.Context(), "r", Now(), Handler{}); !errors.Is(err, ErrJoined) {
			t.Errorf("Join = %v", err)
		}
		p.acceptJoin(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Join(ctx, "slow", Now(), Handler{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Join = %v", err)
		}
		p.expect("join")
		if f := p.expect("leave"); f.Room != "slow" {
			t.Errorf("left %q", f.Room)
		}
	})
}

func TestSignals(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		if err := c.Signal("r", []byte(`1`)); !errors.Is(err, ErrOffline) {
			t.Errorf("Signal = %v", err)
		}
		var got eventLog
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		if err := c.Signal("r", []byte(`{"typing" : true}`)); err != nil {
			t.Fatal(err)
		}
		if f := p.expect("signal"); f.Room != "r" || string(f.Data) != `{"typing" : true}` {
			t.Errorf("the client sent %+v", f)
		}
		p.send(`{"type":"signal","room":"r","from":"bob","data":{"typing":true}}`)
		p.send(`{"type":"signal","room":"r","from":null,"data":2}`)
		got.want(t, "joined 1", `signal bob {"typing":true}`, "signal  2")
		if err := c.Signal("r", []byte(`{`)); !errors.Is(err, ErrInvalidData) {
			t.Errorf("Signal = %v", err)
		}
		if err := c.Signal("r", jsonStringOf1000Bytes()); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Signal = %v", err)
		}
	})
}

// jsonStringOf1000Bytes returns a JSON string of 1000 bytes.
func jsonStringOf1000Bytes() []byte {
	b := make([]byte, 1000)
	for i := range b {
		b[i] = 'x'
	}
	b[0], b[999] = '"', '"'
	return b
}

func TestHistory(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		type result struct {
			h   History
			err error
		}
		request := func(r HistoryRange) <-chan result {
			out := make(chan result, 1)
			go func() {
				h, err := c.History(context.Background(), "r", r)
				out <- result{h, err}
			}()
			synctest.Wait()
			return out
		}
		results := request(HistoryRange{Before: 9, Limit: 2})
		p := s.accept()
		if f := p.expect("history"); *f.Before != 9 || f.After != nil || f.Limit != 2 {
			t.Errorf("the client sent %+v", f)
		}
		p.closeWith(0) // the request is repeated on the next connection
		p = s.accept()
		f := p.expect("history")
		p.send(`{"type":"history","ref":%q,"room":"r","more":true,"messages":[{"type":"message","room":"r","epoch":"e","seq":7,"id":"x","from":"bob","at":"2026-01-02T15:04:05.000001Z","data":{"a" : 1}}]}`, f.Ref)
		got := <-results
		if got.err != nil || !got.h.More || len(got.h.Messages) != 1 {
			t.Fatalf("History = %+v", got)
		}
		m := got.h.Messages[0]
		if m.Room != "r" || m.Seq != 7 || m.From != "bob" || string(m.Data) != `{"a" : 1}` || m.At.Nanosecond() != 1000 {
			t.Errorf("message %+v with data %s", m, m.Data)
		}
		results = request(HistoryRange{Forward: true})
		if f = p.expect("history"); f.After == nil || *f.After != 0 || f.Before != nil {
			t.Errorf("the client sent %+v", f)
		}
		p.refuse(f, "forbidden", "")
		var refused *Error
		if got := <-results; !errors.As(got.err, &refused) {
			t.Errorf("History = %v", got.err)
		}
		results = request(HistoryRange{After: 5})
		if f = p.expect("history"); f.After == nil || *f.After != 5 {
			t.Errorf("the client sent %+v", f)
		}
		p.refuse(f, "forbidden", "")
		<-results
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.History(ctx, "r", HistoryRange{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("History = %v", err)
		}
	})
}

// Two parts of a program join one room, and each ends by itself.
func TestEachJoinRoomHasAPositionAndAnEnd(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		p := s.accept()
		var one, two eventLog
		rooms := make(chan *Room, 2)
		join := func(log *eventLog, from Position) {
			go func() {
				room, err := c.JoinRoom(context.Background(), "r", from, log.handler())
				if err != nil {
					t.Error(err)
				}
				rooms <- room
			}()
			synctest.Wait()
			p.acceptJoin(2)
			synctest.Wait()
		}
		join(&one, Start())
		first := <-rooms
		p.message(1, "a", "null")
		p.message(2, "b", "null")
		one.want(t, "joined 2", "e/1", "e/2")
		join(&two, Start())
		second := <-rooms
		p.message(1, "a", "null")
		one.want(t, "joined 2", "e/1", "e/2")
		two.want(t, "joined 2", "e/1")
		if a, b := first.Position(), second.Position(); a != After("e", 2) || b != After("e", 1) || second.Joined.Head != 2 {
			t.Errorf("the positions are %+v and %+v, the head is %d", a, b, second.Joined.Head)
		}
		if _, err := c.Join(context.Background(), "r", Now(), Handler{}); !errors.Is(err, ErrJoined) {
			t.Errorf("Join = %v, want ErrJoined", err)
		}
		first.Leave()
		first.Leave()
		p.message(2, "b", "null")
		p.message(3, "c", "null")
		one.want(t, "joined 2", "e/1", "e/2")
		two.want(t, "joined 2", "e/1", "e/2", "e/3")
		second.Leave()
		p.expect("leave")
	})
}

// A join whose position cannot be one is refused before it is sent.
func TestAJoinFromAnImpossiblePositionIsRefused(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		s.accept()
		for _, from := range []Position{After("e", -1), After("", 5)} {
			if _, err := c.Join(t.Context(), "r", from, Handler{}); err == nil || !strings.Contains(err.Error(), "epoch") {
				t.Errorf("a join from %+v: %v", from, err)
			}
		}
	})
}
