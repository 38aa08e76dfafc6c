package sharedstate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// changePresence records one change of users' sessions of generation 1.
func (p *testNode) changePresence(kind message.PresenceKind, room message.Room, users ...string) {
	p.changePresenceAs(1, kind, room, users...)
}

// changePresenceAs does what changePresence does, with another generation. A
// session is named after its user.
func (p *testNode) changePresenceAs(generation int64, kind message.PresenceKind, room message.Room, users ...string) {
	var all []message.PresenceChange
	for _, user := range users {
		all = append(all, message.PresenceChange{
			Kind: kind, Room: room, Session: message.SessionID("s-" + user), User: user, Generation: generation,
		})
	}
	p.Change(all)
}

// usersIn returns the users that a node sees in a room, separated by spaces, with
// the count before them if it is another one.
func (p *testNode) usersIn(t *testing.T, room message.Room) string {
	t.Helper()
	got, err := p.Room(testContext(t), room, 100)
	if err != nil {
		return err.Error()
	}
	var users []string
	for _, entry := range got.Entries {
		users = append(users, entry.User)
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
			t.Logf("%s last saw %q in %s, want %q", p.cfg.Node, last, room, want)
		}
	}()
	testkit.Eventually(t, p.cfg.Node+" sees the members of "+string(room), func() bool {
		last = p.usersIn(t, room)
		return last == want
	})
}

// isPresenceEventOf matches the event that the presence of a room has changed.
func isPresenceEventOf(room message.Room) func(message.NodeEvent) bool {
	return func(e message.NodeEvent) bool {
		return e.Kind == message.EventPresenceChanged && slices.Contains(e.Rooms, room)
	}
}

// waitAllVisible waits until all nodes see each other.
func waitAllVisible(t *testing.T, peers ...*testNode) {
	t.Helper()
	for _, p := range peers {
		testkit.Eventually(t, p.cfg.Node+" sees all nodes", func() bool { return p.seesNodes(len(peers)) })
	}
}

func presenceSpansAllNodes(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	waitAllVisible(t, a, b)
	if got := a.usersIn(t, "lobby"); got != "" {
		t.Errorf("an empty room has %q", got)
	}
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	a.changePresence(message.PresenceJoined, "den", "bob")
	a.waitUsersIn(t, "lobby", "ada bob") // at once, unless Redis takes longer than maxFlushWait
	b.waitEvent(t, "that the lobby has changed", isPresenceEventOf("lobby"))
	a.waitEvent(t, "that the lobby has changed", isPresenceEventOf("lobby"))
	b.waitUsersIn(t, "lobby", "ada bob")
	b.changePresence(message.PresenceJoined, "lobby", "cyd", "")
	b.waitUsersIn(t, "lobby", " ada bob cyd") // the anonymous user's session comes first
	a.changePresence(message.PresenceLeft, "lobby", "bob")
	a.changePresence(message.PresenceLeft, "lobby", "nobody")
	a.changePresence(message.PresenceLeft, "never", "ada")
	a.waitUsersIn(t, "lobby", " ada cyd")
	b.waitUsersIn(t, "lobby", " ada cyd")
	b.waitUsersIn(t, "den", "bob")
	got, err := b.Room(testContext(t), "lobby", 100)
	if err != nil || got.Entries[1] != (message.PresenceEntry{Session: "s-ada", User: "ada"}) {
		t.Errorf("the entries are %v, %v", got.Entries, err)
	}
	if got := a.metric(t, "presence_seats", ""); got != 2 {
		t.Errorf("%v entries on node-a, want 2", got)
	}
}

// During a move or a reconnect a session is listed once, and never missing.
func aMoveDoesNotChangePresence(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, func(c *Config) { c.LeaveGrace = time.Second })
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob", "cyd")
	b.waitUsersIn(t, "lobby", "ada bob cyd")
	b.waitEvent(t, "that the lobby has changed", isPresenceEventOf("lobby"))
	before := b.countEvents(isPresenceEventOf("lobby"))
	// ada moves: the newer connection joins before the older one ends.
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
	a.changePresence(message.PresenceDisconnected, "lobby", "ada")
	// bob is cut off and reconnects to another node, cyd to the same one.
	a.changePresence(message.PresenceDisconnected, "lobby", "bob", "cyd")
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "bob")
	a.changePresenceAs(2, message.PresenceJoined, "lobby", "cyd")
	a.changePresence(message.PresenceDisconnected, "lobby", "cyd") // the end of the old connection, noticed late
	began := time.Now()
	testkit.Eventually(t, "more than the grace passes", func() bool {
		for _, p := range []*testNode{a, b} {
			if got := p.usersIn(t, "lobby"); got != "ada bob cyd" {
				t.Fatalf("%s sees %q", p.cfg.Node, got)
			}
		}
		return time.Since(began) > 2500*time.Millisecond
	})
	if got := b.countEvents(isPresenceEventOf("lobby")); got != before {
		t.Errorf("%d events although nothing has changed", got-before)
	}
	// A session that does not reconnect leaves after the grace.
	b.changePresenceAs(2, message.PresenceDisconnected, "lobby", "ada")
	if got := a.usersIn(t, "lobby"); got != "ada bob cyd" {
		t.Errorf("right after a disconnect the room has %q", got)
	}
	a.waitUsersIn(t, "lobby", "bob cyd")
}

func theNewerGenerationWins(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	waitAllVisible(t, a, b)
	b.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
	b.waitUsersIn(t, "lobby", "ada")
	// The changes of the older connection arrive late.
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	a.changePresence(message.PresenceLeft, "lobby", "ada")
	a.changePresence(message.PresenceJoined, "lobby", "bob")
	b.waitUsersIn(t, "lobby", "ada bob")
	// The same holds for two connections on one node.
	b.changePresence(message.PresenceLeft, "lobby", "ada")
	b.changePresence(message.PresenceJoined, "lobby", "ada")
	b.changePresenceAs(1, message.PresenceDisconnected, "lobby", "ada")
	if got := b.usersIn(t, "lobby"); got != "ada bob" {
		t.Errorf("the leave of an older connection had an effect: %q", got)
	}
	b.changePresenceAs(2, message.PresenceLeft, "lobby", "ada")
	a.waitUsersIn(t, "lobby", "bob")
}

func largeRoomsAreCounted(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	waitAllVisible(t, a, b)
	var users []string
	for i := range 300 {
		users = append(users, fmt.Sprintf("u%03d", i))
	}
	a.changePresence(message.PresenceJoined, "hall", users[:200]...)
	b.changePresenceAs(2, message.PresenceJoined, "hall", users[100:]...) // 100 of them are the same sessions
	testkit.Eventually(t, "300 sessions are counted", func() bool {
		got, err := a.Room(testContext(t), "hall", 200)
		return err == nil && got.Count == 300 && got.Entries == nil
	})
	got, err := b.Room(testContext(t), "hall", 300)
	if err != nil || got.Count != 300 || len(got.Entries) != 300 {
		t.Errorf("%d counted, %d listed, %v", got.Count, len(got.Entries), err)
	}
	a.changePresence(message.PresenceLeft, "hall", users[:200]...)
	b.changePresenceAs(2, message.PresenceLeft, "hall", users[250:]...)
	testkit.Eventually(t, "150 sessions are left", func() bool {
		got, err := a.Room(testContext(t), "hall", 10)
		return err == nil && got.Entries == nil && got.Count == 150
	})
	b.changePresenceAs(2, message.PresenceLeft, "hall", users...)
	testkit.Eventually(t, "the room is empty", func() bool {
		got, err := a.Room(testContext(t), "hall", 0)
		return err == nil && got.Count == 0 && got.Entries != nil
	})
}

// Thousands of changes become few round trips and few events.
func rapidChangesAreCoalesced(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	waitAllVisible(t, a, b)
	began := time.Now()
	for i := range 5000 {
		user := fmt.Sprintf("u%d", i%50)
		a.changePresence(message.PresenceJoined, "busy", user)
		a.changePresence(message.PresenceLeft, "busy", user)
	}
	a.changePresence(message.PresenceJoined, "busy", "ada")
	b.waitUsersIn(t, "busy", "ada")
	b.waitEvent(t, "about the busy room", isPresenceEventOf("busy"))
	took := time.Since(began)
	if got, most := b.countEvents(isPresenceEventOf("busy")), int(took/coalesceInterval)+2; got > most {
		t.Errorf("%d events in %v, want %d at most", got, took, most)
	}
	if got := a.metric(t, "session_operation_duration_seconds", "presence"); got > 5000 {
		t.Errorf("10,000 changes took %v round trips", got)
	}
}

func aKilledNodesSessionsLeave(t *testing.T, factory backendFactory) {
	peers := startNodes(t, factory, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	waitAllVisible(t, a, b, c)
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprintf("u%d", i))
	}
	b.changePresence(message.PresenceJoined, "lobby", append(many, "bob", "cyd")...)
	b.changePresence(message.PresenceJoined, "den", "bob")
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	counts := func(p *testNode, want int) func() bool {
		return func() bool {
			got, err := p.Room(testContext(t), "lobby", 100)
			return err == nil && got.Count == want
		}
	}
	testkit.Eventually(t, "node-a sees all sessions", counts(a, 503))
	testkit.Eventually(t, "node-c sees all sessions", counts(c, 503))
	before := a.countEvents(isAnyRoomEvent)
	b.cancel() // as if the process was killed
	killed := time.Now()
	c.changePresenceAs(2, message.PresenceJoined, "lobby", "cyd") // before the death is noticed
	testkit.Eventually(t, "the sessions of the dead node are gone", counts(a, 2))
	if took := time.Since(killed); took < nodeExpiry-2*time.Second {
		t.Errorf("they are gone after %v: their clients had no time to reconnect", took)
	}
	a.waitUsersIn(t, "lobby", "ada cyd")
	a.waitUsersIn(t, "den", "")
	testkit.Eventually(t, "an event that any room may have changed", func() bool { return a.countEvents(isAnyRoomEvent) > before })
	// The other nodes sweep its entries.
	testkit.Eventually(t, "the tags of the dead node are removed", func() bool {
		all, err := a.backend.tags(testContext(t))
		for _, tags := range all {
			for tag := range maps.Keys(tags) {
				if nodeOf(tag) == "node-b" {
					return false
				}
			}
		}
		return err == nil
	})
	a.waitUsersIn(t, "lobby", "ada cyd")
}
