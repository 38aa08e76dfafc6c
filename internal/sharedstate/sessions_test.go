package sharedstate

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
)

// withTwoRooms is a session's state with two rooms.
func withTwoRooms(s message.Session) message.Session {
	s.Revision++
	s.Rooms = []message.RoomPosition{{Room: "den", Epoch: "e1", Seq: 1 << 40}, {Room: "lobby", Epoch: "e1", Seq: 7}}
	return s
}

func aSessionResumesOnAnotherNode(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	if s.Generation != 1 || s.PreviousNode != "" || s.User != "ada" || !strings.HasPrefix(secret, string(s.ID)+".") {
		t.Fatalf("a fresh session: %+v, %q", s, secret)
	}
	a.save(t, withTwoRooms(s))
	got := b.resume(t, secret, "ada")
	want := withTwoRooms(s)
	want.Generation, want.Revision, want.PreviousNode = 2, 0, "node-a"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("came back as\n%+v, want\n%+v", got, want)
	}
	if got := b.metric(t, "session_resumes_total", "resumed"); got != 1 {
		t.Errorf("%v resumed", got)
	}
	// Anonymous users have sessions, too; theirs are told apart by the secret.
	secret, s = b.New("")
	b.save(t, s)
	if got := a.resume(t, secret, ""); got.Generation != 2 || got.Rooms != nil || got.PreviousNode != "node-b" {
		t.Errorf("an anonymous one came back as %+v", got)
	}
}

func onlyItsOwnerResumesASession(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	unsaved, other := a.New("ada")
	b.wantNoResume(t, "another user", secret, "eve")
	b.wantNoResume(t, "an anonymous user", secret, "")
	b.wantNoResume(t, "never saved", unsaved, "ada")
	name, rest, _ := strings.Cut(secret, ".")
	_, otherRest, _ := strings.Cut(unsaved, ".")
	for why, guess := range map[string]string{
		"nothing": "", "the name alone": name, "the name and a dot": name + ".", "the rest alone": rest,
		"somebody else's rest": name + "." + otherRest, "a name of one's own": string(other.ID) + "." + rest,
		"far too long": name + "." + strings.Repeat("A", 1<<20), "two dots": name + "." + rest + ".x",
	} {
		b.wantNoResume(t, why, guess, "ada")
	}
	if got := b.metric(t, "session_resumes_total", "unknown"); got != 11 {
		t.Errorf("%v attempts counted as unknown, want 11", got)
	}
	// None of this took it from its owner.
	if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveDone {
		t.Errorf("the owner's save: %v", saveResults[got])
	}
	if got := b.resume(t, secret, "ada"); got.Generation != 2 {
		t.Errorf("generation %d", got.Generation)
	}
}

func theOldOwnerIsNotifiedAndRefused(t *testing.T, h backendFactory) {
	peers := startNodes(t, h, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	taken := b.resume(t, secret, "ada")
	isEvent := func(k message.NodeEventKind) func(message.NodeEvent) bool {
		return func(n message.NodeEvent) bool {
			return n.Kind == k && n.Session == s.ID && n.Generation == 2 && n.Node == "node-b"
		}
	}
	a.waitEvent(t, "that the session was taken", isEvent(message.EventTakeover))
	b.AnnounceLive(taken)
	a.waitEvent(t, "that its newer socket is live", isEvent(message.EventSessionLive))
	for _, touch := range []bool{false, true} {
		if got := a.trySave(t, withTwoRooms(s), touch); got != message.SaveSuperseded {
			t.Errorf("the old owner's save (touch %v): %v", touch, saveResults[got])
		}
	}
	a.End(s) // an old socket's goodbye is not the session's
	if got := b.trySave(t, withTwoRooms(taken), false); got != message.SaveDone {
		t.Errorf("the new owner's save: %v", saveResults[got])
	}
	// The next takeover is told to the next owner, and to nobody else.
	if got := c.resume(t, secret, "ada"); got.Generation != 3 || got.PreviousNode != "node-b" {
		t.Errorf("the second takeover: %+v", got)
	}
	b.waitEvent(t, "of the second takeover", func(n message.NodeEvent) bool { return n.Generation == 3 })
	if got := a.countEvents(func(n message.NodeEvent) bool { return n.Generation == 3 }); got != 0 {
		t.Error("the first owner was told of the second takeover")
	}
	a.AnnounceLive(s) // a fresh session has no old owner: nobody is told
}

func aSessionResumesOnTheSameNode(t *testing.T, h backendFactory) {
	a, _ := startPair(t, h, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	got := a.resume(t, secret, "ada")
	if got.Generation != 2 || got.PreviousNode != "node-a" {
		t.Errorf("%+v", got)
	}
	a.AnnounceLive(got)
	for _, kind := range []message.NodeEventKind{message.EventTakeover, message.EventSessionLive} {
		if got := a.countEvents(func(n message.NodeEvent) bool { return n.Kind == kind && n.Generation == 2 }); got != 1 {
			t.Errorf("told %d times of kind %d", got, kind)
		}
	}
}

func aTouchRenewsOnlyTheSavedState(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	if got := a.trySave(t, s, true); got != message.SaveMissing {
		t.Errorf("a touch of nothing: %v", saveResults[got])
	}
	saved := withTwoRooms(s)
	a.save(t, saved)
	touched := saved
	touched.Rooms = nil
	if got := a.trySave(t, touched, true); got != message.SaveDone {
		t.Errorf("a touch: %v", saveResults[got])
	}
	touched.Revision++ // a save of this revision never arrived
	if got := a.trySave(t, touched, true); got != message.SaveMissing {
		t.Errorf("a touch of a later revision: %v", saveResults[got])
	}
	got := b.resume(t, secret, "ada")
	if len(got.Rooms) != 2 {
		t.Errorf("rooms after touches: %v", got.Rooms)
	}
	got.Rooms = nil
	if r := b.trySave(t, got, true); r != message.SaveDone { // a takeover is a save
		t.Errorf("the new owner's first touch: %v", saveResults[r])
	}
}

func aDelayedSaveDoesNotOverwriteANewerOne(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	first, second := withTwoRooms(s), withTwoRooms(withTwoRooms(s))
	second.Rooms = second.Rooms[:1]
	a.save(t, second)
	if got := a.trySave(t, first, false); got != message.SaveDone { // there is nothing to do
		t.Errorf("the late save: %v", saveResults[got])
	}
	if got := b.resume(t, secret, "ada"); len(got.Rooms) != 1 {
		t.Errorf("it undid the later one: %v", got.Rooms)
	}
}

func anEndedSessionStaysEnded(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	a.End(s)
	a.End(s) // twice is harmless
	// A touch finds nothing once the end has arrived, and changes nothing before.
	gone := withTwoRooms(s)
	eventually(t, "the session to be gone", func() bool { return a.trySave(t, gone, true) == message.SaveMissing })
	b.wantNoResume(t, "after goodbye", secret, "ada")
}

func sessionsExpire(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, func(c *Config) { c.TTL = 400 * time.Millisecond })
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	kept := time.Now()
	eventually(t, "more than the TTL to pass, touched", func() bool {
		return a.trySave(t, withTwoRooms(s), true) != message.SaveDone || time.Since(kept) > time.Second
	})
	if time.Since(kept) > time.Second { // else the machine slept for a TTL, and nothing is proved
		b.resume(t, secret, "ada")
	}
	secret, s = a.New("ada")
	a.save(t, withTwoRooms(s))
	saved := time.Now()
	eventually(t, "the TTL to pass", func() bool { return time.Since(saved) > 500*time.Millisecond })
	b.wantNoResume(t, "expired", secret, "ada")
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveMissing {
		t.Errorf("a touch after the TTL: %v", saveResults[got])
	}
}

func manyRoomsAndUnusualUserNames(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	for _, user := range []string{"", "ä ö\nü", "a\x00b\xff", strings.Repeat("u", message.MaxUserLength)} {
		secret, s := a.New(user)
		s.Revision = 1
		s.Rooms = manyRooms(1000)
		a.save(t, s)
		b.wantNoResume(t, "a prefix of the user", secret, user+"x")
		got := b.resume(t, secret, user)
		if got.User != user || !reflect.DeepEqual(got.Rooms, s.Rooms) {
			t.Errorf("%q came back as %q with %d rooms", user, got.User, len(got.Rooms))
		}
	}
}

// manyRooms returns positions in the order of names.
func manyRooms(n int) []message.RoomPosition {
	rooms := make([]message.RoomPosition, n)
	for i := range rooms {
		rooms[i] = message.RoomPosition{Room: message.Room(fmt.Sprintf("orders:%05d", i)), Epoch: "e1", Seq: message.Seq(i * 100)}
	}
	return rooms
}

func concurrentResumesHaveOneOwner(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	const tries = 40
	got := make(chan message.Session, tries)
	var all sync.WaitGroup
	for i := range tries {
		all.Go(func() {
			n := a
			if i%2 == 0 {
				n = b
			}
			if s, ok, err := n.Resume(within(t, testTimeout), secret, "ada"); ok && err == nil {
				got <- s
			}
		})
	}
	all.Wait()
	close(got)
	seen := map[int64]bool{}
	var last message.Session
	for s := range got {
		if seen[s.Generation] {
			t.Errorf("generation %d was given twice", s.Generation)
		}
		seen[s.Generation] = true
		if s.Generation > last.Generation {
			last = s
		}
	}
	if len(seen) != tries || last.Generation != tries+1 {
		t.Fatalf("%d took over, the last with generation %d", len(seen), last.Generation)
	}
	for _, n := range []*testNode{a, b} {
		stale := last
		stale.Generation--
		if r := n.trySave(t, stale, false); r != message.SaveSuperseded {
			t.Errorf("the last but one may save: %v", saveResults[r])
		}
	}
}

func aLargeBatch(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	var secrets []string
	var batch []message.SessionSave
	for range 500 {
		secret, s := a.New("ada")
		secrets = append(secrets, secret)
		batch = append(batch, message.SessionSave{Session: withTwoRooms(s)})
	}
	mine := b.takeOver(t, a) // one that is not a's any more, in the middle
	batch[250] = message.SessionSave{Session: mine}
	for i, r := range a.Save(within(t, testTimeout), batch) {
		want := message.SaveDone
		if i == 250 {
			want = message.SaveSuperseded
		}
		if r != want {
			t.Fatalf("session %d: %v", i, saveResults[r])
		}
	}
	for i, secret := range secrets {
		if i != 250 {
			b.resume(t, secret, "ada")
		}
	}
	if got := a.Save(within(t, testTimeout), nil); len(got) != 0 {
		t.Errorf("an empty batch gave %v", got)
	}
}

// takeOver takes a session of another node, and returns it as that node has it.
func (p *testNode) takeOver(t *testing.T, from *testNode) message.Session {
	t.Helper()
	secret, s := from.New("ada")
	from.save(t, s)
	p.resume(t, secret, "ada")
	return s
}

func closeSendsWhatIsQueued(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	var first, second message.Session
	var secret string
	secret, first = a.New("ada")
	_, second = a.New("ada")
	a.save(t, first, second)
	taken := b.resume(t, secret, "ada")
	b.AnnounceLive(taken)
	b.End(second)
	if err := b.Close(within(t, testTimeout)); err != nil {
		t.Fatal(err)
	}
	a.waitEvent(t, "that was still to be sent", func(n message.NodeEvent) bool { return n.Kind == message.EventSessionLive })
	if got := a.trySave(t, second, true); got != message.SaveMissing {
		t.Errorf("a session ended just before Close: %v", saveResults[got])
	}
	if err := b.Close(within(t, testTimeout)); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	b.Start(Hooks{}) // starts nothing: the leak check would tell
	b.End(first)
	if got := b.metric(t, "session_dropped_total", "ends_full"); got != 1 {
		t.Errorf("%v ends refused after Close, want 1", got)
	}
}
