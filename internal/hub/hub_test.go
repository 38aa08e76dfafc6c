package hub

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A testClient is a client that records what it receives.
type testClient struct {
	*Client
	t   *testing.T
	out *recordingOutlet
}

func (f *fixture) client(node int) *testClient {
	o := &recordingOutlet{}
	return &testClient{f.nodes[node].NewClient(o, "", ""), f.t, o}
}

// do decodes a frame and hands it to the hub, as the server does.
func (c *testClient) do(frame string, args ...any) error {
	r, err := protocol.Decode(fmt.Appendf(nil, frame, args...))
	if err != nil {
		c.t.Fatalf("%s: %v", frame, err)
	}
	return c.Handle(context.Background(), &r)
}

func (c *testClient) must(frame string, args ...any) {
	c.t.Helper()
	if err := c.do(frame, args...); err != nil {
		c.t.Fatalf("%s: %v", frame, err)
	}
}

// received returns the received frames of some types, in short: "joined 3",
// "message 4".
func (c *testClient) received(types ...string) []string {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	var got []string
	for _, f := range c.out.frames {
		for _, kind := range types {
			if f["type"] != kind {
				continue
			}
			switch kind {
			case "gap":
				got = append(got, fmt.Sprintf("gap %v-%v %v", f["from"], f["to"], f["reason"]))
			case "error":
				got = append(got, fmt.Sprintf("error %v", f["code"]))
			case "signal":
				got = append(got, fmt.Sprintf("signal %v", f["data"]))
			default:
				got = append(got, fmt.Sprintf("%s %v", kind, f["seq"]))
			}
		}
	}
	return got
}

// expectFrames waits until the client has received exactly these frames of its
// rooms.
func (c *testClient) expectFrames(want ...string) {
	c.t.Helper()
	var got []string
	defer func() {
		if c.t.Failed() {
			c.t.Logf("received %v", got)
		}
	}()
	testkit.Eventually(c.t, strings.Join(want, ", "), func() bool {
		got = c.received("joined", "left", "gap", "message", "error", "signal")
		return strings.Join(got, ",") == strings.Join(want, ",")
	})
}

func messages(from, to int) []string {
	var s []string
	for seq := from; seq <= to; seq++ {
		s = append(s, fmt.Sprintf("message %d", seq))
	}
	return s
}

func TestAMessageReachesEveryMemberOnEveryNode(t *testing.T) {
	f := newFixture(t, 2)
	a, b, other := f.client(0), f.client(1), f.client(1)
	a.must(`{"type":"join","room":"r"}`)
	b.must(`{"type":"join","room":"r"}`)
	other.must(`{"type":"join","room":"elsewhere"}`)
	for _, p := range []*testClient{a, b, other} {
		p.expectFrames("joined 0")
	}
	a.must(`{"type":"publish","ref":"1","room":"r","data":"hi","id":"x"}`)
	b.must(`{"type":"publish","room":"r","data":"ho"}`)
	want := append([]string{"joined 0"}, messages(1, 2)...)
	a.expectFrames(want...)
	b.expectFrames(want...)
	if got := a.received("ack"); len(got) != 1 || got[0] != "ack 1" {
		t.Errorf("the publisher got %v, want one ack of 1", got)
	}
	other.expectFrames("joined 0")
}

func TestPublishNeedsNoJoin(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"publish","room":"r","data":1}`)
	testkit.Eventually(t, "the ack", func() bool { return len(a.received("ack")) == 1 })
	a.expectFrames()
}

func TestResumeFromMemoryReadsNothingFromTheLog(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	for range 5 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	a.expectFrames(append([]string{"joined 0"}, messages(1, 5)...)...)
	f.log.mu.Lock()
	before := f.log.reads
	f.log.mu.Unlock()
	b := f.client(0)
	b.must(`{"type":"join","room":"r","after":3,"epoch":"e1"}`)
	b.expectFrames("joined 5", "message 4", "message 5")
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	if f.log.reads != before {
		t.Errorf("a resume from memory cost %d reads of the log", f.log.reads-before)
	}
}

func TestResumeFromFarBackComesPageByPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		f.store("r", 950)
		a := f.client(0)
		a.must(`{"type":"join","room":"r","after":0}`)
		a.expectFrames(append([]string{"joined 950"}, messages(1, 950)...)...)
		a.must(`{"type":"publish","room":"r","data":1}`)
		a.expectFrames(append([]string{"joined 950"}, messages(1, 951)...)...)
		testkit.Eventually(t, "the pages to be released", func() bool { return f.nodes[0].memory.pages.Load() == 0 })
	})
}

func TestASlowJoinerGetsTheNextPageOnlyAfterTheLastOneWasSent(t *testing.T) {
	f := newFixture(t, 1)
	f.store("r", 600)
	const page = 200 // DESIGN.md, Bounds
	a := f.client(0)
	a.out.blocked = make(chan struct{})
	a.must(`{"type":"join","room":"r","after":0}`)
	a.expectFrames(append([]string{"joined 600"}, messages(1, page)...)...)
	a.out.blocked <- struct{}{}
	a.expectFrames(append([]string{"joined 600"}, messages(1, 2*page)...)...)
	close(a.out.blocked)
	a.expectFrames(append([]string{"joined 600"}, messages(1, 600)...)...)
}

func TestGaps(t *testing.T) {
	tests := []struct {
		name  string
		first message.Seq
		join  string
		want  []string
	}{
		{"trimmed", 8, `"after":3,"epoch":"e1"`, append([]string{"joined 10", "gap 4-7 trimmed"}, messages(8, 10)...)},
		{"trimmed from the start", 8, `"after":0`, append([]string{"joined 10", "gap 1-7 trimmed"}, messages(8, 10)...)},
		{"nothing missed, and nothing stored any more", 11, `"after":10,"epoch":"e1"`, []string{"joined 10"}},
		{"another epoch", 1, `"after":3,"epoch":"e0"`, []string{"joined 10", "gap 1-10 epoch"}},
		{"ahead of the log", 1, `"after":11,"epoch":"e1"`, []string{"joined 10", "gap 1-10 epoch"}},
		{"from now", 1, `"ref":"x"`, []string{"joined 10"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, 1)
			f.store("r", 10)
			f.log.first = tt.first
			a := f.client(0)
			a.must(`{"type":"join","room":"r",%s}`, tt.join)
			a.expectFrames(tt.want...)
			a.must(`{"type":"publish","room":"r","data":1}`)
			a.expectFrames(append(tt.want, "message 11")...)
		})
	}
}

func TestALostLastMessageIsFoundByTheCommitFeed(t *testing.T) {
	f := newFixture(t, 2)
	f.broker.drop = func([]byte) bool { return true }
	a, b := f.client(0), f.client(1)
	b.must(`{"type":"join","room":"r"}`)
	b.expectFrames("joined 0")
	a.must(`{"type":"publish","room":"r","data":1}`)
	b.expectFrames("joined 0", "message 1")
}

func TestAHoleIsFilledFromTheLog(t *testing.T) {
	f := newFixture(t, 2)
	f.feed.off = true
	n := 0
	f.broker.drop = func([]byte) bool { n++; return n == 2 }
	a, b := f.client(0), f.client(1)
	b.must(`{"type":"join","room":"r"}`)
	b.expectFrames("joined 0")
	for range 4 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	b.expectFrames(append([]string{"joined 0"}, messages(1, 4)...)...)
}

func TestSwappedAndRepeatedBroadcastsArriveOnceInOrder(t *testing.T) {
	f := newFixture(t, 2)
	f.feed.off = true
	var kept [][]byte
	f.broker.drop = func(b []byte) bool { kept = append(kept, bytes.Clone(b)); return true }
	a, b := f.client(0), f.client(1)
	b.must(`{"type":"join","room":"r"}`)
	b.expectFrames("joined 0")
	for range 4 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	for _, i := range []int{1, 1, 0, 3, 2, 0, 3} {
		f.nodes[1].Receive("r", kept[i])
	}
	b.expectFrames(append([]string{"joined 0"}, messages(1, 4)...)...)
}

func TestMembersCatchUpFromTheLogWhenMoreThanAPageIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		f.feed.off = true
		a := f.client(0)
		a.must(`{"type":"join","room":"r"}`)
		a.expectFrames("joined 0")
		f.store("r", 700) // on another node, and no broadcast arrived
		a.must(`{"type":"publish","room":"r","data":1}`)
		a.expectFrames(append([]string{"joined 0"}, messages(1, 701)...)...)
		f.log.mu.Lock()
		defer f.log.mu.Unlock()
		if f.log.reads > 12 {
			t.Errorf("%d reads of the log for 4 pages, want at most 12", f.log.reads)
		}
	})
}

func TestANewEpochVoidsPositions(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	for range 3 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	a.expectFrames(append([]string{"joined 0"}, messages(1, 3)...)...)
	f.log.mu.Lock()
	f.log.epoch = "e2"
	f.log.rooms["r"] = f.log.rooms["r"][:2]
	f.log.mu.Unlock()
	want := append(append([]string{"joined 0"}, messages(1, 3)...), "gap 1-2 epoch")
	a.expectFrames(want...)
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames(append(want, "message 3")...)
}

func TestNothingFollowsLeftAndASecondJoinReplacesTheFirst(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames("joined 0", "message 1")
	a.must(`{"type":"join","room":"r","after":0}`)
	a.expectFrames("joined 0", "message 1", "joined 1", "message 1")
	b := f.client(0)
	b.must(`{"type":"join","room":"r"}`)
	b.expectFrames("joined 1")
	a.must(`{"type":"leave","room":"r"}`)
	a.must(`{"type":"publish","room":"r","data":1}`)
	b.expectFrames("joined 1", "message 2")
	testkit.Eventually(t, "both acks", func() bool { return len(a.received("ack")) == 2 })
	a.expectFrames("joined 0", "message 1", "joined 1", "message 1", "left 1")
	if err := a.do(`{"type":"leave","room":"r"}`); err == nil {
		t.Error("a second leave was accepted")
	}
}

func TestSignalsReachEachMemberOnce(t *testing.T) {
	f := newFixture(t, 2)
	a, b := f.client(0), f.client(1)
	for _, p := range []*testClient{a, b} {
		p.must(`{"type":"join","room":"r"}`)
		p.expectFrames("joined 0")
	}
	a.must(`{"type":"signal","room":"r","data":"typing"}`)
	a.must(`{"type":"publish","room":"r","data":1}`) // a second copy of the signal would precede it
	a.expectFrames("joined 0", "signal typing", "message 1")
	b.expectFrames("joined 0", "signal typing", "message 1")
}

func TestRoomLimitAndReservedRooms(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].cfg.MaxRooms = 2
	a := f.client(0)
	for _, room := range []string{"a", "b", "a"} {
		a.must(`{"type":"join","room":"%s"}`, room)
	}
	if got := protocol.ErrorFor(a.do(`{"type":"join","room":"c"}`)); got.Code != protocol.CodeTooManyRooms {
		t.Errorf("the third room of two was answered with %v", got)
	}
	for _, kind := range []string{`join`, `publish`, `signal`, `history`, `leave`} {
		err := a.do(`{"type":"%s","room":"_canary.x","data":1}`, kind)
		if got := protocol.ErrorFor(err); err == nil || got.Code != protocol.CodeForbidden {
			t.Errorf("%s in a reserved room was answered with %v, want forbidden", kind, err)
		}
	}
	a.Close(true)
	if a.RoomCount() != 0 {
		t.Error("a closed client is still in a room")
	}
}

func TestRequestsAreUnavailableWhileTheLogIsDown(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	f.log.setDown(true)
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames("joined 0", "error unavailable")
	if err := a.do(`{"type":"history","room":"r"}`); protocol.ErrorFor(err).Code != protocol.CodeUnavailable {
		t.Errorf("history was answered with %v, want unavailable", err)
	}
}

func TestAnIdleTopicIsClosedAndReopened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		a := f.client(0)
		a.must(`{"type":"join","room":"r"}`)
		a.expectFrames("joined 0")
		a.Close(true)
		if n := f.broker.subscribed("r"); n != 1 {
			t.Errorf("%d subscriptions of an open topic, want one", n)
		}
		testkit.Eventually(t, "the topic to be closed", func() bool { return f.nodes[0].lookup("r") == nil })
		if n := f.broker.subscribed("r"); n != 0 {
			t.Errorf("%d subscriptions of a closed topic", n)
		}
		b := f.client(0)
		b.must(`{"type":"join","room":"r"}`)
		b.expectFrames("joined 0")
		if got := f.nodes[0].Rooms(); len(got) != 1 || got[0].Members != 1 || f.broker.subscribed("r") != 1 {
			t.Errorf("rooms %+v with %d subscriptions", got, f.broker.subscribed("r"))
		}
	})
}

// A member of a quiet room is still a member when a message arrives.
func TestAMemberStaysWhileItsRoomIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		a := f.client(0)
		a.must(`{"type":"join","room":"r"}`)
		a.expectFrames("joined 0")
		time.Sleep(time.Minute) // many times TopicIdle
		a.must(`{"type":"publish","room":"r","data":1}`)
		a.expectFrames("joined 0", "message 1")
	})
}

func FuzzPayload(f *testing.F) {
	p := payload{kind: kindMessages, origin: 7, sentAt: 8, epoch: "e", frames: []roomFrame{{seq: 1, frame: protocol.Signal("a", "", []byte("1"))}}}
	f.Add(p.encode())
	f.Add([]byte{1, 's'})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePayload(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("%x is not what its decoded payload encodes to", b)
		}
	})
}
