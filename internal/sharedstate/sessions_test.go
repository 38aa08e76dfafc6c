package sharedstate

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// withTwoRooms returns the next revision of a session, with two rooms.
func withTwoRooms(s message.Session) message.Session {
	s.Revision++
	s.Rooms = []message.RoomPosition{{Room: "den", Epoch: "e1", Seq: 1 << 40}, {Room: "lobby", Epoch: "e1", Seq: 7}}
	return s
}

func aSessionResumesOnAnotherNode(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	secret, s := a.New("ada")
	if s.Generation != 1 || s.PreviousNode != "" || s.User != "ada" || !strings.HasPrefix(secret, string(s.ID)+".") {
		t.Fatalf("a new session: %+v, %q", s, secret)
	}
	a.save(t, withTwoRooms(s))
	got := b.resume(t, secret, "ada")
	want := withTwoRooms(s)
	want.Generation, want.Revision, want.PreviousNode = 2, 0, "node-a"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("resumed as\n%+v, want\n%+v", got, want)
	}
	if got := b.metric(t, "session_resumes_total", "resumed"); got != 1 {
		t.Errorf("%v resumes are counted, want 1", got)
	}
	// Anonymous users have sessions too.
	secret, s = b.New("")
	b.save(t, s)
	if got := a.resume(t, secret, ""); got.Generation != 2 || got.Rooms != nil || got.PreviousNode != "node-b" {
		t.Errorf("an anonymous session resumed as %+v", got)
	}
}

func onlyItsOwnerResumesASession(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
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
		"another session's rest": name + "." + otherRest, "another session's name": string(other.ID) + "." + rest,
		"far too long": name + "." + strings.Repeat("A", 1<<20), "two dots": name + "." + rest + ".x",
	} {
		b.wantNoResume(t, why, guess, "ada")
	}
	if got := b.metric(t, "session_resumes_total", "unknown"); got != 11 {
		t.Errorf("%v attempts are counted as unknown, want 11", got)
	}
	// The session still has the same owner.
	if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveDone {
		t.Errorf("the owner's save: %v", saveResults[got])
	}
	if got := b.resume(t, secret, "ada"); got.Generation != 2 {
		t.Errorf("generation %d", got.Generation)
	}
}

func theOldOwnerIsNotifiedAndRefused(t *testing.T, factory backendFactory) {
	peers := startNodes(t, factory, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	taken := b.resume(t, secret, "ada")
	isEvent := func(k message.NodeEventKind) func(message.NodeEvent) bool {
		return func(e message.NodeEvent) bool {
			return e.Kind == k && e.Session == s.ID && e.Generation == 2 && e.Node == "node-b"
		}
	}
	a.waitEvent(t, "about the takeover", isEvent(message.EventTakeover))
	b.AnnounceLive(taken)
	a.waitEvent(t, "that the newer connection is live", isEvent(message.EventSessionLive))
	for _, touch := range []bool{false, true} {
		if got := a.trySave(t, withTwoRooms(s), touch); got != message.SaveSuperseded {
			t.Errorf("the old owner's save (touch %v): %v", touch, saveResults[got])
		}
	}
	a.End(s) // which has no effect, because the session has a newer connection
	if got := b.trySave(t, withTwoRooms(taken), false); got != message.SaveDone {
		t.Errorf("the new owner's save: %v", saveResults[got])
	}
	// The event about the next takeover goes to the new owner only.
	if got := c.resume(t, secret, "ada"); got.Generation != 3 || got.PreviousNode != "node-b" {
		t.Errorf("the second takeover: %+v", got)
	}
	isSecondTakeover := func(e message.NodeEvent) bool { return e.Generation == 3 }
	b.waitEvent(t, "about the second takeover", isSecondTakeover)
	if got := a.countEvents(isSecondTakeover); got != 0 {
		t.Error("the first owner got an event about the second takeover")
	}
	a.AnnounceLive(s) // which sends nothing, because a new session has no old owner
}

func aSessionResumesOnTheSameNode(t *testing.T, factory backendFactory) {
	a, _ := startPair(t, factory, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	got := a.resume(t, secret, "ada")
	if got.Generation != 2 || got.PreviousNode != "node-a" {
		t.Errorf("resumed as %+v", got)
	}
	a.AnnounceLive(got)
	for _, kind := range []message.NodeEventKind{message.EventTakeover, message.EventSessionLive} {
		if got := a.countEvents(func(e message.NodeEvent) bool { return e.Kind == kind && e.Generation == 2 }); got != 1 {
			t.Errorf("%d events of kind %d, want 1", got, kind)
		}
	}
}

func aTouchRenewsOnlyTheSavedState(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	secret, s := a.New("ada")
	if got := a.trySave(t, s, true); got != message.SaveMissing {
		t.Errorf("a touch of a session that was never saved: %v", saveResults[got])
	}
	saved := withTwoRooms(s)
	a.save(t, saved)
	touched := saved
	touched.Rooms = nil
	if got := a.trySave(t, touched, true); got != message.SaveDone {
		t.Errorf("a touch: %v", saveResults[got])
	}
	touched.Revision++ // as if a save of this revision was lost
	if got := a.trySave(t, touched, true); got != message.SaveMissing {
		t.Errorf("a touch of a later revision: %v", saveResults[got])
	}
	got := b.resume(t, secret, "ada")
	if len(got.Rooms) != 2 {
		t.Errorf("rooms after touches: %v", got.Rooms)
	}
	got.Rooms = nil
	if r := b.trySave(t, got, true); r != message.SaveDone { // a takeover counts as a save
		t.Errorf("the new owner's first touch: %v", saveResults[r])
	}
}

func aDelayedSaveDoesNotOverwriteANewerOne(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	secret, s := a.New("ada")
	first, second := withTwoRooms(s), withTwoRooms(withTwoRooms(s))
	second.Rooms = second.Rooms[:1]
	a.save(t, second)
	if got := a.trySave(t, first, false); got != message.SaveDone { // without an effect
		t.Errorf("the delayed save: %v", saveResults[got])
	}
	if got := b.resume(t, secret, "ada"); len(got.Rooms) != 1 {
		t.Errorf("the delayed save overwrote the newer one: %v", got.Rooms)
	}
}

func anEndedSessionStaysEnded(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	a.End(s)
	a.End(s) // a second time is harmless
	// A touch tests it: it changes nothing while the session exists.
	gone := withTwoRooms(s)
	testkit.Eventually(t, "the session is gone", func() bool { return a.trySave(t, gone, true) == message.SaveMissing })
	b.wantNoResume(t, "an ended session", secret, "ada")
}

func sessionsExpire(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, func(c *Config) { c.TTL = 400 * time.Millisecond })
	// On Redis a busy machine may pause the test for a TTL, which proves nothing:
	// such an attempt is made again.
	testkit.Eventually(t, "a session that is touched outlives its TTL", func() bool {
		secret, s := a.New("ada")
		a.save(t, withTwoRooms(s))
		for began := time.Now(); time.Since(began) < time.Second; <-time.After(5 * time.Millisecond) {
			if a.trySave(t, withTwoRooms(s), true) != message.SaveDone {
				break
			}
		}
		_, ok, err := b.Resume(testContext(t), secret, "ada")
		if a.inMemory() && !ok {
			t.Errorf("in virtual time: %v", err)
		}
		return ok
	})
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	saved := time.Now()
	testkit.Eventually(t, "more than the TTL passes", func() bool { return time.Since(saved) > 500*time.Millisecond })
	b.wantNoResume(t, "an expired session", secret, "ada")
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveMissing {
		t.Errorf("a touch after the TTL: %v", saveResults[got])
	}
}

func manyRoomsAndUnusualUserNames(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	for _, user := range []string{"", "ä ö\nü", "a\x00b\xff", strings.Repeat("u", message.MaxUserLength)} {
		secret, s := a.New(user)
		s.Revision = 1
		s.Rooms = manyRooms(1000)
		a.save(t, s)
		b.wantNoResume(t, "a longer user name", secret, user+"x")
		got := b.resume(t, secret, user)
		if got.User != user || !reflect.DeepEqual(got.Rooms, s.Rooms) {
			t.Errorf("%q resumed as %q with %d rooms", user, got.User, len(got.Rooms))
		}
	}
}

// manyRooms returns positions in n rooms, sorted by name.
func manyRooms(n int) []message.RoomPosition {
	rooms := make([]message.RoomPosition, n)
	for i := range rooms {
		rooms[i] = message.RoomPosition{Room: message.Room(fmt.Sprintf("orders:%05d", i)), Epoch: "e1", Seq: message.Seq(i * 100)}
	}
	return rooms
}

func concurrentResumesHaveOneOwner(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
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
			if s, ok, err := n.Resume(testContext(t), secret, "ada"); ok && err == nil {
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
			t.Errorf("two resumes returned generation %d", s.Generation)
		}
		seen[s.Generation] = true
		if s.Generation > last.Generation {
			last = s
		}
	}
	if len(seen) != tries || last.Generation != tries+1 {
		t.Fatalf("%d resumes took over, the last with generation %d", len(seen), last.Generation)
	}
	for _, n := range []*testNode{a, b} {
		stale := last
		stale.Generation--
		if r := n.trySave(t, stale, false); r != message.SaveSuperseded {
			t.Errorf("a save of the last generation but one: %v", saveResults[r])
		}
	}
}

func aLargeBatch(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	var secrets []string
	var batch []message.SessionSave
	for range 500 {
		secret, s := a.New("ada")
		secrets = append(secrets, secret)
		batch = append(batch, message.SessionSave{Session: withTwoRooms(s)})
	}
	lost := b.takeOver(t, a) // among them is a session that a has lost
	batch[250] = message.SessionSave{Session: lost}
	for i, r := range a.Save(testContext(t), batch) {
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
	if got := a.Save(testContext(t), nil); len(got) != 0 {
		t.Errorf("an empty batch returned %v", got)
	}
}

// takeOver takes over a session of another node, and returns it as that node has
// it.
func (p *testNode) takeOver(t *testing.T, from *testNode) message.Session {
	t.Helper()
	secret, s := from.New("ada")
	from.save(t, s)
	p.resume(t, secret, "ada")
	return s
}

func closeSendsWhatIsQueued(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	var first, second message.Session
	var secret string
	secret, first = a.New("ada")
	_, second = a.New("ada")
	a.save(t, first, second)
	taken := b.resume(t, secret, "ada")
	b.AnnounceLive(taken)
	b.End(second)
	if err := b.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	a.waitEvent(t, "that was queued at Close", func(e message.NodeEvent) bool { return e.Kind == message.EventSessionLive })
	if got := a.trySave(t, second, true); got != message.SaveMissing {
		t.Errorf("a touch of a session that ended just before Close: %v", saveResults[got])
	}
	if err := b.Close(testContext(t)); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	b.Start(Hooks{}) // which starts nothing, or the check for leaks would fail
	b.End(first)
	if got := b.metric(t, "session_dropped_total", "ends_full"); got != 1 {
		t.Errorf("%v ends are counted as dropped after Close, want 1", got)
	}
}
