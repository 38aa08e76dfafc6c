package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// register keeps who is in which room; the real one is tested with sessions.
type register struct {
	mu    sync.Mutex
	rooms map[message.Room]map[message.SessionID]string
	kinds []message.PresenceKind
	asked int
	down  bool
}

func (p *register) Change(changes []message.PresenceChange) {
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

func (p *register) Room(_ context.Context, room message.Room, limit int) (message.Presence, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked++; p.down {
		return message.Presence{}, errors.New("planted: away")
	}
	all := message.Presence{Count: len(p.rooms[room]), Members: []message.Member{}}
	for id, user := range p.rooms[room] {
		all.Members = append(all.Members, message.Member{Session: id, User: user})
	}
	slices.SortFunc(all.Members, func(a, b message.Member) int { return strings.Compare(string(a.Session), string(b.Session)) })
	if all.Count > limit {
		all.Members = nil
	}
	return all, nil
}

func (p *register) count(room message.Room) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.rooms[room])
}

func (p *register) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

func presenceWorld(t *testing.T) (*world, *register) {
	t.Helper()
	p := &register{rooms: map[message.Room]map[message.SessionID]string{}}
	return newWorld(t, 1, func(c *Config) { c.Presence, c.PresenceLimit = p, 3 }), p
}

// named is a client with a session.
func (w *world) named(user string) *person {
	p := w.client(0)
	p.Client = w.nodes[0].NewClient(p.out, user)
	p.SetSession(message.SessionID("s-"+user), 1)
	return p
}

// told is what a client was told of who is there, in short.
func (p *person) told() (told []string) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	list := func(v any) string {
		var names []string
		members, _ := v.([]any)
		for _, m := range members {
			names = append(names, fmt.Sprint(m.(map[string]any)["session"]))
		}
		return strings.Join(names, " ")
	}
	for _, f := range p.out.frames {
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
		told = append(told, s)
	}
	return told
}

func (p *person) isTold(want ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("presence %q", want), func() bool { return slices.Equal(p.told(), want) })
}

func TestWhoIsThereIsToldAndThenWhatChanges(t *testing.T) {
	w, r := presenceWorld(t)
	ann, bob := w.named("ann"), w.named("bob")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	ann.must(`{"type":"presence","room":"a","ref":"p"}`)
	ann.isTold("1 = s-ann")
	bob.must(`{"type":"join","room":"a"}`)
	eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
	w.nodes[0].PresenceChanged([]message.Room{"a", "nowhere"})
	ann.isTold("1 = s-ann", "2 + s-bob")
	w.nodes[0].PresenceChanged(nil) // any room may have changed; this one has not
	bob.must(`{"type":"leave","room":"a"}`)
	eventually(t, "bob to be gone", func() bool { return r.count("a") == 1 })
	w.nodes[0].PresenceChanged(nil)
	ann.isTold("1 = s-ann", "2 + s-bob", "1 - s-bob")
	if got := bob.told(); got != nil {
		t.Errorf("bob, who did not ask, was told %q", got)
	}
}

// One look answers who asks and tells who watches: what each is told leads
// from what it knew to what there is.
func TestWhoAsksLaterAndWhoWatchesAreToldOfOneLook(t *testing.T) {
	w, r := presenceWorld(t)
	ann, bob := w.named("ann"), w.named("bob")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	ann.must(`{"type":"presence","room":"a"}`)
	bob.must(`{"type":"join","room":"a"}`)
	eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
	bob.must(`{"type":"presence","room":"a"}`)
	bob.isTold("2 = s-ann s-bob")
	ann.isTold("1 = s-ann", "2 + s-bob")
	w.nodes[0].PresenceChanged([]message.Room{"a"}) // nothing has: nobody is told again
	eventually(t, "another look", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.asked >= 3 })
	bob.isTold("2 = s-ann s-bob")
}

func TestManyAreCounted(t *testing.T) {
	w, r := presenceWorld(t)
	ann := w.named("ann")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	ann.must(`{"type":"presence","room":"a"}`)
	crowd := []*person{w.named("b"), w.named("c"), w.named("d")}
	for _, p := range crowd {
		p.must(`{"type":"join","room":"a"}`)
	}
	eventually(t, "the crowd", func() bool { return r.count("a") == 4 })
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	ann.isTold("1 = s-ann", "4")
	crowd[0].Close(true)
	eventually(t, "one to be gone", func() bool { return r.count("a") == 3 })
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	ann.isTold("1 = s-ann", "4", "3 = s-ann s-c s-d") // few enough again to be listed
}

func TestAnybodyWhoMayReadCanAskOnce(t *testing.T) {
	w, r := presenceWorld(t)
	ann, eve := w.named("ann"), w.named("eve")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	eve.must(`{"type":"presence","room":"a"}`)
	eve.isTold("1 = s-ann")
	ann.must(`{"type":"leave","room":"a"}`)
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	eve.isTold("1 = s-ann") // she is not in the room: no more is told
}

func TestNothingIsToldAfterLeft(t *testing.T) {
	w, r := presenceWorld(t)
	ann := w.named("ann")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	ann.must(`{"type":"presence","room":"a"}`)
	ann.must(`{"type":"leave","room":"a"}`)
	eventually(t, "ann to be gone", func() bool { return r.count("a") == 0 })
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	before := len(ann.told())
	bob := w.named("bob")
	bob.must(`{"type":"join","room":"a"}`)
	eventually(t, "bob to be present", func() bool { return r.count("a") == 1 })
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	bob.must(`{"type":"presence","room":"a"}`)
	bob.isTold("1 = s-bob")
	if got := len(ann.told()); got != before {
		t.Errorf("told %d times after left", got-before)
	}
}

func TestHowSessionsGoIsTold(t *testing.T) {
	w, r := presenceWorld(t)
	for _, how := range []string{"leave", "goodbye", "cut"} {
		p := w.named(how)
		p.must(`{"type":"join","room":"a"}`)
		eventually(t, "presence", func() bool { return r.count("a") == 1 })
		switch how {
		case "leave":
			p.must(`{"type":"leave","room":"a"}`)
		default:
			p.Close(how == "goodbye")
		}
		eventually(t, "absence", func() bool { return r.count("a") == 0 })
	}
	want := []message.PresenceKind{
		message.PresenceJoined, message.PresenceLeft, message.PresenceJoined, message.PresenceLeft,
		message.PresenceJoined, message.PresenceLost,
	}
	if !slices.Equal(r.kinds, want) {
		t.Errorf("told %v, want %v", r.kinds, want)
	}
}

func TestPresenceAwayIsUnavailableAndComesBack(t *testing.T) {
	w, r := presenceWorld(t)
	ann := w.named("ann")
	ann.must(`{"type":"join","room":"a"}`)
	eventually(t, "ann to be present", func() bool { return r.count("a") == 1 })
	r.set(true)
	if err := ann.do(`{"type":"presence","room":"a"}`); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("asked while away: %v", err)
	}
	r.set(false)
	ann.must(`{"type":"presence","room":"a"}`)
	r.set(true)
	w.named("bob").must(`{"type":"join","room":"a"}`)
	eventually(t, "bob to be present", func() bool { return r.count("a") == 2 })
	w.nodes[0].PresenceChanged([]message.Room{"a"})
	eventually(t, "a look that fails", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.asked > 2 })
	r.set(false) // nobody says again that something changed
	ann.isTold("1 = s-ann", "2 + s-bob")
}

func TestWithoutPresenceTheRequestIsUnknown(t *testing.T) {
	w := newWorld(t, 1)
	p := w.client(0)
	p.must(`{"type":"join","room":"a"}`)
	var e *protocol.Error
	if err := p.do(`{"type":"presence","room":"a"}`); !errors.As(err, &e) || e.Code != protocol.CodeUnknownType {
		t.Errorf("%v", err)
	}
}

// However presence goes on, each frame leads from what was told to what is.
func TestDifferencesLeadFromOneToTheNext(t *testing.T) {
	list := func(names string) *message.Presence {
		p := &message.Presence{Members: []message.Member{}}
		for _, n := range strings.Fields(names) {
			p.Members = append(p.Members, message.Member{Session: message.SessionID(n)})
		}
		p.Count = len(p.Members)
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
		f, changed := difference("r", list(tt.before), list(tt.now))
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
