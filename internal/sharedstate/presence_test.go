package sharedstate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// changePresence tells a node of one change of a session of generation 1.
func (p *testNode) changePresence(kind message.PresenceKind, room message.Room, users ...string) {
	p.changePresenceAs(1, kind, room, users...)
}

// changePresenceAs is does with a generation. A session is named after its user.
func (p *testNode) changePresenceAs(generation int64, kind message.PresenceKind, room message.Room, users ...string) {
	var all []message.PresenceChange
	for _, user := range users {
		all = append(all, message.PresenceChange{
			Kind: kind, Room: room, Session: message.SessionID("s-" + user), User: user, Generation: generation,
		})
	}
	p.Change(all)
}

// usersIn returns the users that a node sees in a room; with the number in front of
// them where that is another one.
func (p *testNode) usersIn(t *testing.T, room message.Room) string {
	t.Helper()
	got, err := p.Room(within(t, testTimeout), room, 100)
	if err != nil {
		return err.Error()
	}
	var users []string
	for _, m := range got.Entries {
		users = append(users, m.User)
	}
	if len(users) != got.Count || got.Entries == nil {
		return fmt.Sprintf("%d: %v", got.Count, users)
	}
	return strings.Join(users, " ")
}

// waitUsersIn waits until a node sees exactly these users.
func (p *testNode) waitUsersIn(t *testing.T, room message.Room, want string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("%s saw %q in %s last, want %q", p.cfg.Node, last, room, want)
		}
	}()
	eventually(t, "the members of "+string(room), func() bool {
		last = p.usersIn(t, room)
		return last == want
	})
}

func isPresenceEventOf(room message.Room) func(message.NodeEvent) bool {
	return func(n message.NodeEvent) bool {
		return n.Kind == message.EventPresenceChanged && slices.Contains(n.Rooms, room)
	}
}

// waitAllVisible waits until all nodes know of each other.
func waitAllVisible(t *testing.T, peers ...*testNode) {
	t.Helper()
	for _, p := range peers {
		eventually(t, "the nodes to know each other", func() bool { return p.seesNodes(len(peers)) })
	}
}

func presenceSpansAllNodes(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	waitAllVisible(t, a, b)
	if got := a.usersIn(t, "lobby"); got != "" {
		t.Errorf("an empty room has %q", got)
	}
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	a.changePresence(message.PresenceJoined, "den", "bob")
	if got := a.usersIn(t, "lobby"); got != "ada bob" { // who asks sees what it did before
		t.Errorf("the node itself sees %q", got)
	}
	b.waitEvent(t, "that somebody came", isPresenceEventOf("lobby"))
	a.waitEvent(t, "that somebody came", isPresenceEventOf("lobby"))
	if got := b.usersIn(t, "lobby"); got != "ada bob" {
		t.Errorf("when the other is told it sees %q", got)
	}
	b.changePresence(message.PresenceJoined, "lobby", "cyd", "")
	b.waitUsersIn(t, "lobby", " ada bob cyd") // the anonymous one has the first name of a session
	a.changePresence(message.PresenceLeft, "lobby", "bob")
	a.changePresence(message.PresenceLeft, "lobby", "nobody")
	a.changePresence(message.PresenceLeft, "never", "ada")
	if got := a.usersIn(t, "lobby"); got != " ada cyd" {
		t.Errorf("after a leave the node itself sees %q", got)
	}
	b.waitUsersIn(t, "lobby", " ada cyd")
	b.waitUsersIn(t, "den", "bob")
	got, err := b.Room(within(t, testTimeout), "lobby", 100)
	if err != nil || got.Entries[1] != (message.PresenceEntry{Session: "s-ada", User: "ada"}) {
		t.Errorf("members %v, %v", got.Entries, err)
	}
	if got := a.metric(t, "presence_seats", ""); got != 2 {
		t.Errorf("%v seats on a", got)
	}
}

// A move or a reconnect shows nobody twice, and nobody as gone.
func aMoveDoesNotChangePresence(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, func(c *Config) { c.LeaveGrace = time.Second })
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob", "cyd")
	b.waitUsersIn(t, "lobby", "ada bob cyd")
	b.waitEvent(t, "that somebody came", isPresenceEventOf("lobby"))
	before := b.countEvents(isPresenceEventOf("lobby"))
	// ada moves: the newer socket is there before the older one ends.
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
	a.changePresence(message.PresenceDisconnected, "lobby", "ada")
	// bob is cut off and comes back elsewhere, cyd where he was.
	a.changePresence(message.PresenceDisconnected, "lobby", "bob", "cyd")
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "bob")
	a.changePresenceAs(2, message.PresenceJoined, "lobby", "cyd")
	a.changePresence(message.PresenceDisconnected, "lobby", "cyd") // the old socket's end, noticed late
	began := time.Now()
	eventually(t, "more than the grace to pass", func() bool {
		for _, p := range []*testNode{a, b} {
			if got := p.usersIn(t, "lobby"); got != "ada bob cyd" {
				t.Fatalf("%s sees %q", p.cfg.Node, got)
			}
		}
		return time.Since(began) > 2500*time.Millisecond
	})
	if got := b.countEvents(isPresenceEventOf("lobby")); got != before {
		t.Errorf("told %d times of a change, though there was none", got-before)
	}
	// And who does not come back is gone after the grace.
	b.changePresenceAs(2, message.PresenceDisconnected, "lobby", "ada")
	if got := a.usersIn(t, "lobby"); got != "ada bob cyd" {
		t.Errorf("gone at once: %q", got)
	}
	a.waitUsersIn(t, "lobby", "bob cyd")
}

func theNewerGenerationWins(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	waitAllVisible(t, a, b)
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
	b.waitUsersIn(t, "lobby", "ada")
	// What the older socket's node still has to tell comes late.
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	a.changePresence(message.PresenceLeft, "lobby", "ada")
	a.changePresence(message.PresenceJoined, "lobby", "bob")
	b.waitUsersIn(t, "lobby", "ada bob")
	// On the same node as well.
	b.changePresence(message.PresenceLeft, "lobby", "ada")
	b.changePresence(message.PresenceJoined, "lobby", "ada")
	b.changePresenceAs(1, message.PresenceDisconnected, "lobby", "ada")
	if got := b.usersIn(t, "lobby"); got != "ada bob" {
		t.Errorf("an older socket's leave counted: %q", got)
	}
	b.changePresenceAs(2, message.PresenceLeft, "lobby", "ada")
	a.waitUsersIn(t, "lobby", "bob")
}

func largeRoomsAreCounted(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	waitAllVisible(t, a, b)
	var users []string
	for i := range 300 {
		users = append(users, fmt.Sprintf("u%03d", i))
	}
	a.changePresence(message.PresenceJoined, "hall", users[:200]...)
	b.changePresenceAs(2, message.PresenceJoined, "hall", users[100:]...) // 100 of them are the same sessions
	eventually(t, "300 to be counted", func() bool {
		got, err := a.Room(within(t, testTimeout), "hall", 200)
		return err == nil && got.Count == 300 && got.Entries == nil
	})
	got, err := b.Room(within(t, testTimeout), "hall", 300)
	if err != nil || got.Count != 300 || len(got.Entries) != 300 {
		t.Errorf("%d counted, %d listed, %v", got.Count, len(got.Entries), err)
	}
	a.changePresence(message.PresenceLeft, "hall", users[:200]...)
	b.changePresenceAs(2, message.PresenceLeft, "hall", users[250:]...)
	eventually(t, "150 to be left", func() bool {
		got, err := a.Room(within(t, testTimeout), "hall", 10)
		return err == nil && got.Entries == nil && got.Count == 150
	})
	b.changePresenceAs(2, message.PresenceLeft, "hall", users...)
	eventually(t, "nobody to be left", func() bool {
		got, err := a.Room(within(t, testTimeout), "hall", 0)
		return err == nil && got.Count == 0 && got.Entries != nil
	})
}

// Tens of thousands of changes become few round trips, and few notices.
func rapidChangesAreCoalesced(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	waitAllVisible(t, a, b)
	began := time.Now()
	for i := range 5000 {
		user := fmt.Sprintf("u%d", i%50)
		a.changePresence(message.PresenceJoined, "rush", user)
		a.changePresence(message.PresenceLeft, "rush", user)
	}
	a.changePresence(message.PresenceJoined, "rush", "ada")
	b.waitUsersIn(t, "rush", "ada")
	b.waitEvent(t, "of the rush", isPresenceEventOf("rush"))
	took := time.Since(began)
	if got, most := b.countEvents(isPresenceEventOf("rush")), int(took/coalesceInterval)+2; got > most {
		t.Errorf("told %d times in %v, want %d at most", got, took, most)
	}
	if got := a.metric(t, "session_operation_duration_seconds", "presence"); got > 5000 {
		t.Errorf("10,000 changes took %v round trips", got)
	}
}

func aKilledNodesSessionsLeave(t *testing.T, h backendFactory) {
	peers := startNodes(t, h, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	waitAllVisible(t, a, b, c)
	var crowd []string
	for i := range 500 {
		crowd = append(crowd, fmt.Sprintf("u%d", i))
	}
	b.changePresence(message.PresenceJoined, "lobby", append(crowd, "bob", "cyd")...)
	b.changePresence(message.PresenceJoined, "den", "bob")
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	counts := func(p *testNode, want int) func() bool {
		return func() bool {
			got, err := p.Room(within(t, testTimeout), "lobby", 100)
			return err == nil && got.Count == want
		}
	}
	eventually(t, "all to be seen", counts(a, 503))
	eventually(t, "all to be seen", counts(c, 503))
	before := a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventPresenceChanged && n.Rooms == nil })
	b.cancel()
	killed := time.Now()
	c.changePresenceAs(2, message.PresenceJoined, "lobby", "cyd") // one is back before anybody noticed
	eventually(t, "the others to be gone", counts(a, 2))
	if took := time.Since(killed); took < nodeExpiry-2*time.Second {
		t.Errorf("gone after %v already: nobody had time to come back", took)
	}
	a.waitUsersIn(t, "lobby", "ada cyd")
	a.waitUsersIn(t, "den", "")
	eventually(t, "a notice that any room may have changed", func() bool {
		return a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventPresenceChanged && n.Rooms == nil }) > before
	})
	// What it left behind is removed, by whoever lives.
	eventually(t, "nothing to be left of it", func() bool {
		all, err := a.backend.tags(within(t, testTimeout))
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
	a.waitUsersIn(t, "lobby", "ada cyd")
}
