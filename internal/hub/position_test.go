package hub

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func (c *testClient) positions() string {
	got, _ := c.Positions(nil)
	slices.SortFunc(got, func(a, b message.RoomPosition) int { return len(a.Room) - len(b.Room) })
	return fmt.Sprint(got)
}

// A pong confirms what was sent before its ping. Before the first pong, the
// position of the join counts.
func TestAPongConfirmsWhatWasSentBeforeItsPing(t *testing.T) {
	f := newFixture(t, 1)
	f.store("a", 3)
	p := f.client(0)
	p.must(`{"type":"join","room":"a","after":2,"epoch":"e1"}`)
	p.expectFrames("joined 3", "message 3")
	p.must(`{"type":"join","room":"bb"}`)
	p.expectFrames("joined 3", "message 3", "joined 0")
	if got, want := p.positions(), "[{a e1 2} {bb e1 0}]"; got != want {
		t.Errorf("after the joins: %s, want %s", got, want)
	}
	p.PingSent()
	p.must(`{"type":"publish","room":"a","data":1}`)
	p.must(`{"type":"publish","room":"bb","data":1}`)
	testkit.Eventually(t, "both messages", func() bool { return len(p.received("message")) == 3 })
	if got, want := p.positions(), "[{a e1 2} {bb e1 0}]"; got != want {
		t.Errorf("before the pong: %s, want %s", got, want)
	}
	p.PongReceived()
	if got, want := p.positions(), "[{a e1 3} {bb e1 0}]"; got != want {
		t.Errorf("after the pong: %s, want %s, without what followed the ping", got, want)
	}
	p.must(`{"type":"leave","room":"a"}`)
	p.PingSent()
	p.PongReceived()
	if got, want := p.positions(), "[{bb e1 1}]"; got != want {
		t.Errorf("after leaving a: %s, want %s", got, want)
	}
}

// A client that is catching up has confirmed the pages that were sent so far.
func TestPositionsWhileCatchingUp(t *testing.T) {
	f := newFixture(t, 1)
	const page = 200 // DESIGN.md, Bounds
	f.store("a", 2*page+10)
	p := f.client(0)
	// The client does not read the first page.
	p.out.blocked = make(chan struct{}) // the first page does not leave
	p.must(`{"type":"join","room":"a","after":0}`)
	testkit.Eventually(t, "the first page", func() bool { return len(p.received("message")) >= page })
	p.PingSent()
	p.PongReceived()
	if got, want := p.positions(), fmt.Sprintf("[{a e1 %d}]", page); got != want {
		t.Errorf("after the first page: %s, want %s", got, want)
	}
	close(p.out.blocked)
	testkit.Eventually(t, "the rest", func() bool { return len(p.received("message")) == 2*page+10 })
}

// A room whose join is unanswered has no position: the client joins again.
func TestAnUnansweredJoinHasNoPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		f.log.setDown(true)
		p := f.client(0)
		p.must(`{"type":"join","room":"a"}`)
		p.PingSent()
		p.PongReceived()
		if got := p.positions(); got != "[]" {
			t.Errorf("an unanswered join has positions %s", got)
		}
		if _, all := p.Positions(nil); all {
			t.Error("all is true although a join is unanswered")
		}
		f.log.setDown(false)
		p.expectFrames("joined 0")
		if _, all := p.Positions(nil); !all {
			t.Error("all is false although the join was answered")
		}
	})
}

func TestWhenLiveCallsBackOnce(t *testing.T) {
	f := newFixture(t, 1)
	p := f.client(0)
	calls := make(chan struct{}, 3)
	p.WhenLive(2, func() { calls <- struct{}{} })
	p.must(`{"type":"join","room":"a"}`)
	p.expectFrames("joined 0")
	if len(calls) != 0 {
		t.Error("called while one room was not live")
	}
	p.must(`{"type":"join","room":"b"}`)
	p.must(`{"type":"join","room":"c"}`)
	testkit.Eventually(t, "the call", func() bool { return len(calls) == 1 })
	none := f.client(0)
	none.WhenLive(0, func() { calls <- struct{}{} })
	if len(calls) != 2 {
		t.Error("without rooms it was not called at once")
	}
}
