package session

import (
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// The joins and leaves of a client with rooms=1 are saved at once, not only at its
// next pong. This includes a join that takes long.
func TestRoomsOfAClientThatReliesOnThemAreSavedSoon(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", true)
		set.saved(c)
		stored := func(within time.Duration) string {
			time.Sleep(within)
			synctest.Wait()
			set.store.mu.Lock()
			defer set.store.mu.Unlock()
			return roomsOf(set.store.stored[c.id])
		}
		c.client.setRooms(true, "a")
		c.RoomsChanged()
		if got := stored(saveSoonDelay); got != "a" {
			t.Errorf("the saved rooms are %q, want a", got)
		}
		c.client.setRooms(false, "a") // a join is pending
		c.RoomsChanged()
		if got := stored(3 * saveInterval); got != "a" {
			t.Errorf("the saved rooms are %q, want a", got)
		}
		c.client.setRooms(true, "a", "late")
		if got := stored(saveInterval); got != "a late" {
			t.Errorf("the saved rooms are %q, want the late room, too", got)
		}
		saves := set.store.saves()
		if stored(time.Minute); set.store.saves() != saves {
			t.Error("a session is saved again and again")
		}
		c.client.setRooms(true)
		c.RoomsChanged()
		if got := stored(saveSoonDelay); got != "" {
			t.Errorf("the saved rooms are %q, want none", got)
		}

		knowing := set.connect("", false) // it knows its rooms itself
		set.saved(knowing)
		saves = set.store.saves()
		knowing.RoomsChanged()
		if stored(saveInterval); set.store.saves() != saves {
			t.Error("the rooms of a client that knows them are saved at each change")
		}
	})
}

// A session that has not changed is renewed, without its rooms. If the store has lost it,
// it is saved whole.
func TestAnUnchangedSessionIsRenewed(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", false)
		c.client.setRooms(true, "a")
		set.saved(c)
		pong := func() (saves []message.SessionSave) {
			before := len(set.store.batches)
			c.PingSent(1)
			c.PongReceived(1)
			set.saved(c)
			for _, batch := range set.store.batches[before:] {
				saves = append(saves, batch...)
			}
			return saves
		}
		if saves := pong(); len(saves) != 1 || !saves[0].Renew || saves[0].Rooms != nil || saves[0].Revision != 1 {
			t.Errorf("an unchanged session was saved by %+v", saves)
		}
		c.client.setRooms(true, "a", "b")
		if saves := pong(); len(saves) != 1 || saves[0].Renew || saves[0].Revision != 2 {
			t.Errorf("a changed session was saved by %+v", saves)
		}
		delete(set.store.stored, c.id)
		if saves := pong(); len(saves) != 2 || !saves[0].Renew || saves[1].Renew || roomsOf(set.store.stored[c.id]) != "a b" {
			t.Errorf("a session that was lost was saved by %+v", saves)
		}
	})
}

// Joined rooms are saved before a drain asks their client to move.
func TestChangedRoomsAreSavedBeforeAMove(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c, unchanged := set.connect("", true), set.connect("", true)
		set.saved(c)
		c.client.setRooms(true, "a")
		c.RoomsChanged()
		saves := set.store.saves()
		saved := set.SaveBeforeMove([]*Session{c.Session, nil, unchanged.Session})
		if len(saved) != 3 || !saved[0] || !saved[1] || !saved[2] {
			t.Errorf("saved: %v, want all", saved)
		}
		if got := roomsOf(set.store.stored[c.id]); got != "a" || set.store.saves() != saves+1 {
			t.Errorf("the saved rooms are %q, after %d saves", got, set.store.saves()-saves)
		}
		if set.saved(c); set.store.saves() != saves+1 {
			t.Error("the session was saved twice")
		}
	})
}

// A client that is asked to move has a saved session, however soon after its
// handshake that is.
func TestSessionsAreSavedBeforeClientsMove(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", false)
		if saved := set.SaveBeforeMove([]*Session{c.Session}); !saved[0] || set.store.saves() != 1 {
			t.Errorf("saved: %v, after %d saves", saved, set.store.saves())
		}
		failing := set.connect("", false)
		set.store.failures.Store(1)
		if saved := set.SaveBeforeMove([]*Session{failing.Session}); saved[0] {
			t.Error("a session whose save failed is reported as saved")
		}
		if saved := set.SaveBeforeMove([]*Session{failing.Session}); !saved[0] {
			t.Error("a session is not saved again before the next wave")
		}
	})
}

// A failed save is tried three times, a second apart, without waiting for the client's next
// answer to a ping.
func TestAFailedSaveIsRetried(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		set.store.failures.Store(2)
		c := set.connect("", false)
		time.Sleep(3 * time.Second)
		if set.saved(c).ID != c.id {
			t.Error("the session is not saved after two failures")
		}
		set.store.failures.Store(100)
		set.connect("", false)
		time.Sleep(time.Minute)
		if got := 100 - set.store.failures.Load(); got != 3 {
			t.Errorf("a session was tried to save %d times, want 3", got)
		}
	})
}

// Each reason to save a session gives it three tries: an outage of the store that outlasted
// those of an earlier one does not cost a client its last positions.
func TestTheLastSaveOfAConnectionIsTriedThreeTimes(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", true)
		c.client.setRooms(true, "a")
		set.saved(c)
		last := func(what string, reason func()) {
			set.store.failures.Store(1000)
			c.RoomsChanged()
			time.Sleep(time.Minute) // the outage outlasts the tries
			set.store.failures.Store(2)
			reason()
			time.Sleep(4 * saveInterval)
			if left := set.store.failures.Load(); left != 0 {
				t.Errorf("%s: %d failures are left: the save was not tried again", what, left)
			}
		}
		last("a pong", func() { c.PingSent(1); c.PongReceived(1) })
		last("a join", func() { c.client.setRooms(true, "a", "b"); c.RoomsChanged() })
		last("the end", func() { c.client.setRooms(true, "a", "b", "c"); c.Detach(false) })
		synctest.Wait()
		if got := roomsOf(set.store.stored[c.id]); got != "a b c" {
			t.Errorf("the saved rooms are %q, want those at the end", got)
		}
	})
}

// Many sessions are saved in batches, and all that are due are saved at the end.
func TestSessionsAreSavedInBatches(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		for range 2*saveBatchSize + 1 {
			set.connect("", false)
		}
		set.stop()
		sizes := map[int]int{}
		for _, batch := range set.store.batches {
			sizes[len(batch)]++
		}
		if len(set.store.stored) != 2*saveBatchSize+1 || sizes[saveBatchSize] != 2 || sizes[1] != 1 {
			t.Errorf("%d sessions are stored, by batches of %v", len(set.store.stored), sizes)
		}
	})
}
