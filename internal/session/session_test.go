package session

import (
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

func TestWithoutAStoreThereAreNoSessions(t *testing.T) {
	set := NewSet(Config{Node: "n1"})
	s, secret, resumed := set.Attach(new(fakeConnection), new(fakeClient), protocol.Handshake{Session: "a.b"}, "ann")
	if s != nil || secret != "" || resumed {
		t.Errorf("session %v, secret %q, resumed %v", s, secret, resumed)
	}
	s.PingSent(1)
	s.PongReceived(1)
	s.RoomsChanged()
	s.Detach(true)
	if s.IsReleased() || s.IsFromOtherNode() || s.RoomsToRejoin() != nil {
		t.Error("a connection without a session has one")
	}
	set.SaveLoop(nil) // returns at once
	if saved := set.SaveBeforeMove([]*Session{s}); len(saved) != 1 || !saved[0] {
		t.Errorf("a client without a session waits for a save: %v", saved)
	}
}

// A client that resumes gets its rooms back, once, and its session is live when it has
// joined them all.
func TestAResumedSessionHasItsRooms(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		first := set.connect("", true)
		if first.resumed || first.id != "s1" || first.client.presence != "s1" || first.client.generation != 1 || first.IsFromOtherNode() || first.client.live != nil {
			t.Errorf("a new session is %+v", first)
		}
		first.client.setRooms(true, "a", "b")
		first.RoomsChanged()
		set.saved(first)
		first.Detach(false)

		second := set.connect(first.secret, true)
		if !second.resumed || second.secret != first.secret || second.client.generation != 2 || second.client.liveRooms != 2 || second.IsFromOtherNode() {
			t.Errorf("a resumed session is %+v", second)
		}
		if rooms := second.RoomsToRejoin(); len(rooms) != 2 || rooms[0].Seq != 1 || second.RoomsToRejoin() != nil {
			t.Errorf("rooms to rejoin: %v", rooms)
		}
		if len(set.events.live) != 0 {
			t.Error("the client is live before it has joined its rooms")
		}
		// The stored rooms stay until the client has rejoined them.
		if got := roomsOf(set.saved(second)); got != "a b" {
			t.Errorf("the saved rooms are %q, want those of before", got)
		}
		second.client.setRooms(true, "a")
		second.client.live()
		if len(set.events.live) != 1 || set.events.live[0].Generation != 2 {
			t.Errorf("announced %+v", set.events.live)
		}
		second.RoomsChanged()
		if got := roomsOf(set.saved(second)); got != "a" {
			t.Errorf("the saved rooms are %q", got)
		}
	})
}

// A session that other nodes can't store whole, that belongs to someone else, or that is
// not known, is not resumed.
func TestWhatIsNotResumed(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		set.store.stored["p"] = message.Session{ID: "p", User: "ann", Generation: 1, Partial: true}
		set.store.stored["b"] = message.Session{ID: "b", User: "bob", Generation: 1}
		set.store.stored["o"] = message.Session{ID: "o", User: "ann", Generation: 1, PreviousNode: "n0", Rooms: []message.RoomPosition{{Room: "a"}}}
		for _, secret := range []string{"p.x", "b.x", "unknown.x", "x"} {
			if c := set.connect(secret, true); c.resumed || c.secret == secret || c.IsFromOtherNode() {
				t.Errorf("%s was resumed", secret)
			}
		}
		if c := set.connect("p.x", false); !c.resumed { // it knows its rooms itself
			t.Error("a session without its rooms was not resumed")
		}
		c := set.connect("o.x", false)
		if !c.IsFromOtherNode() || c.RoomsToRejoin() != nil {
			t.Errorf("a session of another node: %+v", c)
		}
	})
}

func TestHandshakesDoNotWaitForUnavailableSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", false)
		set.saved(c)
		set.store.unavailable.Store(true)
		began := time.Now()
		if again := set.connect(c.secret, false); again.resumed || again.id == c.id {
			t.Error("a session was resumed without the store")
		}
		if took := time.Since(began); took != resumeTimeout {
			t.Errorf("the handshake took %v, want %v", took, resumeTimeout)
		}
	})
}

// A pong proves what was sent before the ping with its counter. A pong with another
// counter, such as one that the client sends unasked, proves nothing.
func TestAPongConfirmsItsPing(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", false)
		set.saved(c)
		saves := set.store.saves()
		c.PingSent(7)
		c.PongReceived(6)
		c.PongReceived(8)
		set.saved(c)
		if c.client.pings != 1 || c.client.pongs != 0 || set.store.saves() != saves {
			t.Errorf("%d pings, %d pongs, %d saves", c.client.pings, c.client.pongs, set.store.saves()-saves)
		}
		c.PongReceived(7)
		set.saved(c)
		if c.client.pongs != 1 || set.store.saves() != saves+1 {
			t.Errorf("%d pongs, %d saves, want one each", c.client.pongs, set.store.saves()-saves)
		}
	})
}

// The older of two connections is closed a second after the newer one is live, and at
// the latest after TakeoverTimeout. The newer one stays.
func TestATakeoverClosesTheOlderConnection(t *testing.T) {
	for name, tt := range map[string]struct {
		live, asked bool
		want        time.Duration
	}{
		"the newer one joins nothing":             {false, false, 10 * time.Second},
		"the newer one is live":                   {true, false, 3*time.Second + oldConnectionTimeout},
		"the client was asked to move: it closes": {true, true, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, set *testSet) {
				older := set.connect("", false)
				set.saved(older)
				older.conn.asked.Store(tt.asked)
				newer := set.connect(older.secret, false)
				taken := time.Now()
				set.HandleTakeover(message.NodeEvent{Kind: message.EventTakeover, Session: older.id, Generation: newer.client.generation})
				if !older.IsReleased() || newer.IsReleased() {
					t.Errorf("released: older %v, newer %v", older.IsReleased(), newer.IsReleased())
				}
				if tt.live {
					time.Sleep(3 * time.Second)
					set.HandleTakeover(message.NodeEvent{Kind: message.EventSessionLive, Session: older.id, Generation: newer.client.generation})
				}
				closed := testkit.Receive(t, "the close of the older connection", older.conn.closed)
				if took := closed.at.Sub(taken); closed.code != protocol.CloseReplaced || took != tt.want {
					t.Errorf("closed with %d after %v, want 4009 after %v", closed.code, took, tt.want)
				}
				time.Sleep(time.Minute)
				if !newer.conn.isOpen() {
					t.Error("the newer connection was closed")
				}
			})
		})
	}
}

// A connection that ends before it is closed by a takeover keeps no timer, and its
// events change no other session.
func TestATakeoverOfAnEndedConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c, other := set.connect("", false), set.connect("", false)
		set.HandleTakeover(message.NodeEvent{Kind: message.EventTakeover, Session: c.id, Generation: 2})
		c.Detach(true)
		set.HandleTakeover(message.NodeEvent{Kind: message.EventSessionLive, Session: c.id, Generation: 2})
		if found := set.index.find(c.id); len(found) != 0 || len(set.index.sessions) != 1 {
			t.Errorf("the index has %d connections of the session, and %d sessions", len(found), len(set.index.sessions))
		}
		time.Sleep(time.Minute)
		if !c.conn.isOpen() || !other.conn.isOpen() || other.IsReleased() {
			t.Error("a connection was closed")
		}
	})
}

// A node may miss the event that another node took a session over. It learns of it
// when it saves the session, and closes its connection, which must not stay beside
// the newer one.
func TestAConnectionWhoseSaveIsSupersededIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		c := set.connect("", false)
		stored := set.saved(c)
		stored.Generation++ // another node has taken the session over
		set.store.stored[c.id] = stored
		c.PingSent(1)
		c.PongReceived(1)
		began := time.Now()
		closed := testkit.Receive(t, "the close of the connection", c.conn.closed)
		if took := closed.at.Sub(began); closed.code != protocol.CloseReplaced || took > saveInterval+set.cfg.TakeoverTimeout || took < set.cfg.TakeoverTimeout {
			t.Errorf("closed with %d after %v", closed.code, took)
		}
		if !c.IsReleased() {
			t.Error("the session is not released")
		}
		saves := set.store.saves()
		c.Detach(false)
		if set.saved(c); set.store.saves() != saves {
			t.Error("a session of another connection was saved")
		}
	})
}

// A close with 1000 deletes the session. Any other end saves its final rooms.
func TestTheEndOfAConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, set *testSet) {
		lost := set.connect("", false)
		set.saved(lost)
		lost.client.setRooms(true, "a")
		lost.Detach(false)
		lost.client.setRooms(true) // the client leaves its rooms after that
		if got := roomsOf(set.saved(lost)); got != "a" || len(set.events.ended) != 0 {
			t.Errorf("the saved rooms are %q, want those at the end; %d sessions ended", got, len(set.events.ended))
		}

		closed := set.connect("", false)
		set.saved(closed)
		saves := set.store.saves()
		closed.Detach(true)
		synctest.Wait()
		if len(set.events.ended) != 1 || set.events.ended[0].ID != closed.id {
			t.Errorf("ended: %+v", set.events.ended)
		}
		if set.saved(closed); set.store.saves() != saves {
			t.Error("a deleted session was saved")
		}
	})
}

// A session of a thousand rooms is not saved after each join: a save has all of them.
func TestALargeSessionIsSavedSoonLessOften(t *testing.T) {
	s := &Session{record: message.Session{Rooms: make([]message.RoomPosition, 1000)}}
	now := time.Now()
	saves := 0
	for i := range 100 {
		if s.maySaveSoon(now.Add(time.Duration(i) * 50 * time.Millisecond)) {
			saves++
		}
	}
	if saves != 5 {
		t.Errorf("%d saves in five seconds, want one a second", saves)
	}
	s.record.Rooms = s.record.Rooms[:1]
	if !s.maySaveSoon(now.Add(5*time.Second)) || !s.maySaveSoon(now.Add(5*time.Second+50*time.Millisecond)) {
		t.Error("a session of one room is not saved soon twice")
	}
}
