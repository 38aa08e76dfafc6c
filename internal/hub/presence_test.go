package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// A fakePresence keeps the presence of rooms in memory. The real one is tested
// in package sharedstate.
type fakePresence struct {
	mu      sync.Mutex
	rooms   map[message.Room]map[message.SessionID]string
	kinds   []message.PresenceKind
	queries int
	down    bool
}

func (p *fakePresence) Change(changes []message.PresenceChange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		p.kinds = append(p.kinds, c.Kind)
		if p.rooms[c.Room] == nil {
			p.rooms[c.Room] = map[message.SessionID]string{}
		}
		if c.Kind == message.PresenceJoined {
			p.rooms[c.Room][c.Session] = c.User
		} else {
			delete(p.rooms[c.Room], c.Session)
		}
	}
}

func (p *fakePresence) Room(_ context.Context, room message.Room, limit int) (message.Presence, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queries++; p.down {
		return message.Presence{}, errors.New("injected: presence is down")
	}
	all := message.Presence{Count: len(p.rooms[room]), Entries: []message.PresenceEntry{}}
	for id, user := range p.rooms[room] {
		all.Entries = append(all.Entries, message.PresenceEntry{Session: id, User: user})
	}
	slices.SortFunc(all.Entries, func(a, b message.PresenceEntry) int { return strings.Compare(string(a.Session), string(b.Session)) })
	if all.Count > limit {
		all.Entries = nil
	}
	return all, nil
}

func (p *fakePresence) count(room message.Room) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.rooms[room])
}

func (p *fakePresence) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// newPresenceFixture returns a fixture with one node that lists at most three
// presence entries.
func newPresenceFixture(t *testing.T) (*fixture, *fakePresence) {
	t.Helper()
	p := &fakePresence{rooms: map[message.Room]map[message.SessionID]string{}}
	return newFixture(t, 1, func(c *Config) { c.Presence, c.PresenceLimit = p, 3 }), p
}

// clientWithSession returns a client with a user and a session.
func (f *fixture) clientWithSession(user string) *testClient {
	p := f.client(0)
	p.Client = f.nodes[0].NewClient(p.out, user, "")
	p.SetSession(message.SessionID("s-"+user), 1)
	return p
}

// presenceFrames returns the presence frames that the client received, in
// short: the count, then "=" and all members, "+" and those that joined, "-"
// and those that left.
func (c *testClient) presenceFrames() (frames []string) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	list := func(v any) string {
		var names []string
		members, _ := v.([]any)
		for _, m := range members {
			names = append(names, fmt.Sprint(m.(map[string]any)["session"]))
		}
		return strings.Join(names, " ")
	}
	for _, f := range c.out.frames {
		if f["type"] != "presence" {
			continue
		}
		s := fmt.Sprint(f["count"])
		if m, ok := f["members"]; ok {
			s += " = " + list(m)
		}
		if j, ok := f["joined"]; ok {
			s += " + " + list(j)
		}
		if l, ok := f["left"]; ok {
			s += " - " + list(l)
		}
		frames = append(frames, s)
	}
	return frames
}

// expectPresence waits until the client has received exactly these presence
// frames.
func (c *testClient) expectPresence(want ...string) {
	c.t.Helper()
	testkit.Eventually(c.t, fmt.Sprintf("presence %q", want), func() bool { return slices.Equal(c.presenceFrames(), want) })
}

func TestAWatcherGetsTheSnapshotAndThenTheChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann, bob := f.clientWithSession("ann"), f.clientWithSession("bob")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		ann.must(`{"type":"presence","room":"a","ref":"p"}`)
		ann.expectPresence("1 = s-ann")
		bob.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
		f.nodes[0].PresenceChanged([]message.Room{"a", "nowhere"})
		ann.expectPresence("1 = s-ann", "2 + s-bob")
		f.nodes[0].PresenceChanged(nil) // any room may have changed; this one has not
		bob.must(`{"type":"leave","room":"a"}`)
		testkit.Eventually(t, "bob to be gone", func() bool { return r.count("a") == 1 })
		f.nodes[0].PresenceChanged(nil)
		ann.expectPresence("1 = s-ann", "2 + s-bob", "1 - s-bob")
		if got := bob.presenceFrames(); got != nil {
			t.Errorf("bob, who did not request presence, got %q", got)
		}
	})
}

// One query answers a request and updates the members that watch. Each of them
// gets the difference from what it knew.
func TestOneQueryAnswersTheRequesterAndTheWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann, bob := f.clientWithSession("ann"), f.clientWithSession("bob")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		ann.must(`{"type":"presence","room":"a"}`)
		bob.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
		bob.must(`{"type":"presence","room":"a"}`)
		bob.expectPresence("2 = s-ann s-bob")
		ann.expectPresence("1 = s-ann", "2 + s-bob")
		f.nodes[0].PresenceChanged([]message.Room{"a"}) // nothing has: no frame follows
		testkit.Eventually(t, "another query", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.queries >= 3 })
		bob.expectPresence("2 = s-ann s-bob")
	})
}

func TestPresenceIsACountAboveTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann := f.clientWithSession("ann")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		ann.must(`{"type":"presence","room":"a"}`)
		others := []*testClient{f.clientWithSession("b"), f.clientWithSession("c"), f.clientWithSession("d")}
		for _, p := range others {
			p.must(`{"type":"join","room":"a"}`)
		}
		testkit.Eventually(t, "all four to be present", func() bool { return r.count("a") == 4 })
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		ann.expectPresence("1 = s-ann", "4")
		others[0].Close(true)
		testkit.Eventually(t, "one to be gone", func() bool { return r.count("a") == 3 })
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		ann.expectPresence("1 = s-ann", "4", "3 = s-ann s-c s-d") // few enough to be listed again
	})
}

func TestANonMemberGetsPresenceOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann, eve := f.clientWithSession("ann"), f.clientWithSession("eve")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		eve.must(`{"type":"presence","room":"a"}`)
		eve.expectPresence("1 = s-ann")
		ann.must(`{"type":"leave","room":"a"}`)
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		eve.expectPresence("1 = s-ann") // she is not in the room: no changes follow
	})
}

func TestNoPresenceIsSentAfterLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann := f.clientWithSession("ann")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		ann.must(`{"type":"presence","room":"a"}`)
		ann.must(`{"type":"leave","room":"a"}`)
		testkit.Eventually(t, "ann to be gone", func() bool { return r.count("a") == 0 })
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		before := len(ann.presenceFrames())
		bob := f.clientWithSession("bob")
		bob.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "bob to be present", func() bool { return r.count("a") == 1 })
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		bob.must(`{"type":"presence","room":"a"}`)
		bob.expectPresence("1 = s-bob")
		if got := len(ann.presenceFrames()); got != before {
			t.Errorf("%d presence frames after left", got-before)
		}
	})
}

func TestPresenceDistinguishesLeftFromDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		for _, how := range []string{"leave", "clean close", "connection lost"} {
			p := f.clientWithSession(how)
			p.must(`{"type":"join","room":"a"}`)
			testkit.Eventually(t, "presence", func() bool { return r.count("a") == 1 })
			switch how {
			case "leave":
				p.must(`{"type":"leave","room":"a"}`)
			default:
				p.Close(how == "clean close")
			}
			testkit.Eventually(t, "absence", func() bool { return r.count("a") == 0 })
		}
		want := []message.PresenceKind{
			message.PresenceJoined, message.PresenceLeft, message.PresenceJoined, message.PresenceLeft,
			message.PresenceJoined, message.PresenceDisconnected,
		}
		if !slices.Equal(r.kinds, want) {
			t.Errorf("reported %v, want %v", r.kinds, want)
		}
	})
}

func TestPresenceIsUnavailableDuringAnOutageAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newPresenceFixture(t)
		ann := f.clientWithSession("ann")
		ann.must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
		r.setDown(true)
		if err := ann.do(`{"type":"presence","room":"a"}`); !errors.Is(err, message.ErrUnavailable) {
			t.Errorf("request during the outage: got %v, want ErrUnavailable", err)
		}
		r.setDown(false)
		ann.must(`{"type":"presence","room":"a"}`)
		r.setDown(true)
		f.clientWithSession("bob").must(`{"type":"join","room":"a"}`)
		testkit.Eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
		f.nodes[0].PresenceChanged([]message.Room{"a"})
		testkit.Eventually(t, "a query that fails", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.queries > 2 })
		r.setDown(false) // no further change is reported
		ann.expectPresence("1 = s-ann", "2 + s-bob")
	})
}

func TestWithoutPresenceTheRequestIsUnknown(t *testing.T) {
	f := newFixture(t, 1)
	p := f.client(0)
	p.must(`{"type":"join","room":"a"}`)
	var e *protocol.Error
	if err := p.do(`{"type":"presence","room":"a"}`); !errors.As(err, &e) || e.Code != protocol.CodeUnknownType {
		t.Errorf("got %v, want unknown_type", err)
	}
}

// Each frame leads from the presence that was sent before to the present one.
func TestPresenceDiff(t *testing.T) {
	list := func(names string) *message.Presence {
		p := &message.Presence{Entries: []message.PresenceEntry{}}
		for _, n := range strings.Fields(names) {
			p.Entries = append(p.Entries, message.PresenceEntry{Session: message.SessionID(n)})
		}
		p.Count = len(p.Entries)
		return p
	}
	for _, tt := range []struct{ before, now, want string }{
		{"", "", "false"},
		{"a b", "a b", "false"},
		{"", "a", "[a] []"},
		{"a", "", "[] [a]"},
		{"a c e", "b c d", "[b d] [a e]"},
		{"a", "a b c", "[b c] []"},
	} {
		f, changed := presenceDiff("r", list(tt.before), list(tt.now))
		got := fmt.Sprint(changed)
		if changed {
			var joined, left []string
			for _, m := range f.Joined {
				joined = append(joined, m.Session)
			}
			for _, m := range f.Left {
				left = append(left, m.Session)
			}
			got = fmt.Sprint(joined, " ", left)
		}
		if got != tt.want {
			t.Errorf("%q to %q: %s, want %s", tt.before, tt.now, got, tt.want)
		}
	}
}
