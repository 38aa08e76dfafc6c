package session

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// does tells a node of one change of a session of generation 1.
func (p *peer) does(kind message.PresenceKind, room message.Room, users ...string) {
	p.doesAs(1, kind, room, users...)
}

// doesAs is does with a generation. A session is named after its user.
func (p *peer) doesAs(generation int64, kind message.PresenceKind, room message.Room, users ...string) {
	var all []message.PresenceChange
	for _, user := range users {
		all = append(all, message.PresenceChange{
			Kind: kind, Room: room, Session: message.SessionID("s-" + user), User: user, Generation: generation,
		})
	}
	p.Change(all)
}

// in returns the users that a node sees in a room; with the number in front of
// them where that is another one.
func (p *peer) in(t *testing.T, room message.Room) string {
	t.Helper()
	got, err := p.Room(within(t, patience), room, 100)
	if err != nil {
		return err.Error()
	}
	var users []string
	for _, m := range got.Members {
		users = append(users, m.User)
	}
	if len(users) != got.Count || got.Members == nil {
		return fmt.Sprintf("%d: %v", got.Count, users)
	}
	return strings.Join(users, " ")
}

// waitIn waits until a node sees exactly these users.
func (p *peer) waitIn(t *testing.T, room message.Room, want string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("%s saw %q in %s last, want %q", p.cfg.Node, last, room, want)
		}
	}()
	eventually(t, "the members of "+string(room), func() bool {
		last = p.in(t, room)
		return last == want
	})
}

func pokedAbout(room message.Room) func(message.Notice) bool {
	return func(n message.Notice) bool {
		return n.Kind == message.NoticePresence && slices.Contains(n.Rooms, room)
	}
}

// met waits until all nodes know of each other.
func met(t *testing.T, peers ...*peer) {
	t.Helper()
	for _, p := range peers {
		eventually(t, "the nodes to know each other", func() bool { return p.sees(len(peers)) })
	}
}

func whoIsInARoomOnAllNodes(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	met(t, a, b)
	if got := a.in(t, "lobby"); got != "" {
		t.Errorf("an empty room has %q", got)
	}
	a.does(message.PresenceJoined, "lobby", "ada", "bob")
	a.does(message.PresenceJoined, "den", "bob")
	if got := a.in(t, "lobby"); got != "ada bob" { // who asks sees what it did before
		t.Errorf("the node itself sees %q", got)
	}
	b.waitNotice(t, "that somebody came", pokedAbout("lobby"))
	a.waitNotice(t, "that somebody came", pokedAbout("lobby"))
	if got := b.in(t, "lobby"); got != "ada bob" {
		t.Errorf("when the other is told it sees %q", got)
	}
	b.does(message.PresenceJoined, "lobby", "cyd", "")
	b.waitIn(t, "lobby", " ada bob cyd") // the anonymous one has the first name of a session
	a.does(message.PresenceLeft, "lobby", "bob")
	a.does(message.PresenceLeft, "lobby", "nobody")
	a.does(message.PresenceLeft, "never", "ada")
	if got := a.in(t, "lobby"); got != " ada cyd" {
		t.Errorf("after a leave the node itself sees %q", got)
	}
	b.waitIn(t, "lobby", " ada cyd")
	b.waitIn(t, "den", "bob")
	got, err := b.Room(within(t, patience), "lobby", 100)
	if err != nil || got.Members[1] != (message.Member{Session: "s-ada", User: "ada"}) {
		t.Errorf("members %v, %v", got.Members, err)
	}
	if got := a.metric(t, "presence_seats", ""); got != 2 {
		t.Errorf("%v seats on a", got)
	}
}

// A move or a reconnect shows nobody twice, and nobody as gone.
func aMoveIsSeenByNobody(t *testing.T, h house) {
	a, b := pair(t, h, func(c *Config) { c.LeaveGrace = time.Second })
	met(t, a, b)
	a.does(message.PresenceJoined, "lobby", "ada", "bob", "cyd")
	b.waitIn(t, "lobby", "ada bob cyd")
	b.waitNotice(t, "that somebody came", pokedAbout("lobby"))
	before := b.heard(pokedAbout("lobby"))
	// ada moves: the newer socket is there before the older one ends.
	b.doesAs(2, message.PresenceJoined, "lobby", "ada")
	a.does(message.PresenceLost, "lobby", "ada")
	// bob is cut off and comes back elsewhere, cyd where he was.
	a.does(message.PresenceLost, "lobby", "bob", "cyd")
	b.doesAs(2, message.PresenceJoined, "lobby", "bob")
	a.doesAs(2, message.PresenceJoined, "lobby", "cyd")
	a.does(message.PresenceLost, "lobby", "cyd") // the old socket's end, noticed late
	began := time.Now()
	eventually(t, "more than the grace to pass", func() bool {
		for _, p := range []*peer{a, b} {
			if got := p.in(t, "lobby"); got != "ada bob cyd" {
				t.Fatalf("%s sees %q", p.cfg.Node, got)
			}
		}
		return time.Since(began) > 2500*time.Millisecond
	})
	if got := b.heard(pokedAbout("lobby")); got != before {
		t.Errorf("told %d times of a change, though there was none", got-before)
	}
	// And who does not come back is gone after the grace.
	b.doesAs(2, message.PresenceLost, "lobby", "ada")
	if got := a.in(t, "lobby"); got != "ada bob cyd" {
		t.Errorf("gone at once: %q", got)
	}
	a.waitIn(t, "lobby", "bob cyd")
}

func theNewerSocketIsBelieved(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	met(t, a, b)
	b.doesAs(2, message.PresenceJoined, "lobby", "ada")
	b.waitIn(t, "lobby", "ada")
	// What the older socket's node still has to tell comes late.
	a.does(message.PresenceJoined, "lobby", "ada")
	a.does(message.PresenceLeft, "lobby", "ada")
	a.does(message.PresenceJoined, "lobby", "bob")
	b.waitIn(t, "lobby", "ada bob")
	// On the same node as well.
	b.does(message.PresenceLeft, "lobby", "ada")
	b.does(message.PresenceJoined, "lobby", "ada")
	b.doesAs(1, message.PresenceLost, "lobby", "ada")
	if got := b.in(t, "lobby"); got != "ada bob" {
		t.Errorf("an older socket's leave counted: %q", got)
	}
	b.doesAs(2, message.PresenceLeft, "lobby", "ada")
	a.waitIn(t, "lobby", "bob")
}

func manyAreCounted(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	met(t, a, b)
	var users []string
	for i := range 300 {
		users = append(users, fmt.Sprintf("u%03d", i))
	}
	a.does(message.PresenceJoined, "hall", users[:200]...)
	b.doesAs(2, message.PresenceJoined, "hall", users[100:]...) // 100 of them are the same sessions
	eventually(t, "300 to be counted", func() bool {
		got, err := a.Room(within(t, patience), "hall", 200)
		return err == nil && got.Count == 300 && got.Members == nil
	})
	got, err := b.Room(within(t, patience), "hall", 300)
	if err != nil || got.Count != 300 || len(got.Members) != 300 {
		t.Errorf("%d counted, %d listed, %v", got.Count, len(got.Members), err)
	}
	a.does(message.PresenceLeft, "hall", users[:200]...)
	b.doesAs(2, message.PresenceLeft, "hall", users[250:]...)
	eventually(t, "150 to be left", func() bool {
		got, err := a.Room(within(t, patience), "hall", 10)
		return err == nil && got.Members == nil && got.Count == 150
	})
	b.doesAs(2, message.PresenceLeft, "hall", users...)
	eventually(t, "nobody to be left", func() bool {
		got, err := a.Room(within(t, patience), "hall", 0)
		return err == nil && got.Count == 0 && got.Members != nil
	})
}

// Tens of thousands of changes become few round trips, and few notices.
func aRushIsGathered(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	met(t, a, b)
	began := time.Now()
	for i := range 5000 {
		user := fmt.Sprintf("u%d", i%50)
		a.does(message.PresenceJoined, "rush", user)
		a.does(message.PresenceLeft, "rush", user)
	}
	a.does(message.PresenceJoined, "rush", "ada")
	b.waitIn(t, "rush", "ada")
	b.waitNotice(t, "of the rush", pokedAbout("rush"))
	took := time.Since(began)
	if got, most := b.heard(pokedAbout("rush")), int(took/pokeEvery)+2; got > most {
		t.Errorf("told %d times in %v, want %d at most", got, took, most)
	}
	if got := a.metric(t, "session_operation_duration_seconds", "presence"); got > 5000 {
		t.Errorf("10,000 changes took %v round trips", got)
	}
}

func aKilledNodesMembersGo(t *testing.T, h house) {
	peers := crew(t, h, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	met(t, a, b, c)
	var crowd []string
	for i := range 500 {
		crowd = append(crowd, fmt.Sprintf("u%d", i))
	}
	b.does(message.PresenceJoined, "lobby", append(crowd, "bob", "cyd")...)
	b.does(message.PresenceJoined, "den", "bob")
	a.does(message.PresenceJoined, "lobby", "ada")
	counts := func(p *peer, want int) func() bool {
		return func() bool {
			got, err := p.Room(within(t, patience), "lobby", 100)
			return err == nil && got.Count == want
		}
	}
	eventually(t, "all to be seen", counts(a, 503))
	eventually(t, "all to be seen", counts(c, 503))
	before := a.heard(func(n message.Notice) bool { return n.Kind == message.NoticePresence && n.Rooms == nil })
	b.cancel()
	killed := time.Now()
	c.doesAs(2, message.PresenceJoined, "lobby", "cyd") // one is back before anybody noticed
	eventually(t, "the others to be gone", counts(a, 2))
	if took := time.Since(killed); took < nodeExpiry-2*time.Second {
		t.Errorf("gone after %v already: nobody had time to come back", took)
	}
	a.waitIn(t, "lobby", "ada cyd")
	a.waitIn(t, "den", "")
	eventually(t, "a notice that any room may have changed", func() bool {
		return a.heard(func(n message.Notice) bool { return n.Kind == message.NoticePresence && n.Rooms == nil }) > before
	})
	// What it left behind is removed, by whoever lives.
	eventually(t, "nothing to be left of it", func() bool {
		all, err := a.space.tags(within(t, patience))
		for _, tags := range all {
			for tag := range maps.Keys(tags) {
				if nodeOf(tag) == "node-b" {
					return false
				}
			}
		}
		return err == nil
	})
	// Counted once Redis has answered, which is after the tags are gone; once each,
	// though two nodes may sweep the same.
	eventually(t, "the shards of two rooms to be counted as swept", func() bool {
		return a.metric(t, "presence_sweeps_total", "")+c.metric(t, "presence_sweeps_total", "") == 2
	})
	a.waitIn(t, "lobby", "ada cyd")
}
