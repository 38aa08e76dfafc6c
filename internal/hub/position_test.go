package hub

import (
	"fmt"
	"slices"
	"testing"

	"switchyard/internal/message"
)

func (c *testClient) positions() string {
	got, _ := c.Positions(nil)
	slices.SortFunc(got, func(a, b message.Position) int { return len(a.Room) - len(b.Room) })
	return fmt.Sprint(got)
}

// What a client provably got is what was on its way before a ping that it
// answered; before the first, what it said when it joined.
func TestAPongConfirmsWhatWasSentBeforeItsPing(t *testing.T) {
	f := newFixture(t, 1)
	f.store("a", 3)
	p := f.client(0)
	p.must(`{"type":"join","room":"a","after":2,"epoch":"e1"}`)
	p.expectFrames("joined 3", "message 3")
	p.must(`{"type":"join","room":"bb"}`)
	p.expectFrames("joined 3", "message 3", "joined 0")
	if got, want := p.positions(), "[{a e1 2} {bb e1 0}]"; got != want {
		t.Errorf("as joined: %s, want %s", got, want)
	}
	p.PingSent()
	p.must(`{"type":"publish","room":"a","data":1}`)
	p.must(`{"type":"publish","room":"bb","data":1}`)
	eventually(t, "both messages", func() bool { return len(p.received("message")) == 3 })
	if got, want := p.positions(), "[{a e1 2} {bb e1 0}]"; got != want {
		t.Errorf("pinged, not answered: %s, want %s", got, want)
	}
	p.PongReceived()
	if got, want := p.positions(), "[{a e1 3} {bb e1 0}]"; got != want {
		t.Errorf("answered: %s, want %s; what followed the ping is not proved", got, want)
	}
	p.must(`{"type":"leave","room":"a"}`)
	p.PingSent()
	p.PongReceived()
	if got, want := p.positions(), "[{bb e1 1}]"; got != want {
		t.Errorf("after leaving a: %s, want %s", got, want)
	}
}

// A client on its way through history has got what was sent so far, not more.
func TestPositionsWhileCatchingUp(t *testing.T) {
	f := newFixture(t, 1)
	page := f.nodes[0].cfg.bounds.pageFrames
	f.store("a", 2*page+10)
	p := f.client(0)
	p.out.blocked = make(chan struct{}) // the first page does not leave
	p.must(`{"type":"join","room":"a","after":0}`)
	eventually(t, "the first page", func() bool { return len(p.received("message")) >= page })
	p.PingSent()
	p.PongReceived()
	if got, want := p.positions(), fmt.Sprintf("[{a e1 %d}]", page); got != want {
		t.Errorf("after the first page: %s, want %s", got, want)
	}
	close(p.out.blocked)
	eventually(t, "the rest", func() bool { return len(p.received("message")) == 2*page+10 })
}

// A room whose join is not answered yet has no position: the client will ask
// again.
func TestAnUnansweredJoinHasNoPosition(t *testing.T) {
	f := newFixture(t, 1)
	f.log.setDown(true)
	p := f.client(0)
	p.must(`{"type":"join","room":"a"}`)
	p.PingSent()
	p.PongReceived()
	if got := p.positions(); got != "[]" {
		t.Errorf("positions %s of a join that was not answered", got)
	}
	if _, all := p.Positions(nil); all {
		t.Error("these are said to be all positions, while a join is not answered")
	}
	f.log.setDown(false)
	p.expectFrames("joined 0")
	if _, all := p.Positions(nil); !all {
		t.Error("the positions are not said to be all, once the join was answered")
	}
}

func TestWhenLiveCallsBackOnce(t *testing.T) {
	f := newFixture(t, 1)
	p := f.client(0)
	calls := make(chan struct{}, 3)
	p.WhenLive(2, func() { calls <- struct{}{} })
	p.must(`{"type":"join","room":"a"}`)
	p.expectFrames("joined 0")
	if len(calls) != 0 {
		t.Error("told with one room to go")
	}
	p.must(`{"type":"join","room":"b"}`)
	p.must(`{"type":"join","room":"c"}`)
	eventually(t, "word of it", func() bool { return len(calls) == 1 })
	none := f.client(0)
	none.WhenLive(0, func() { calls <- struct{}{} })
	if len(calls) != 2 {
		t.Error("without rooms it is live at once")
	}
}
