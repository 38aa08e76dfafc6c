package session

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// oldConnectionTimeout is how long a client that is live on the newer connection has
// to close the older one itself. Only the client knows which messages are still on
// their way.
const oldConnectionTimeout = time.Second

// A Session is what a connection knows of its session. During a takeover two
// connections have the same session, and only the newer may save it. A nil Session is
// that of a connection without one. A Session is safe for concurrent use, except for
// RoomsToRejoin.
type Session struct {
	set         *Set
	connection  Connection
	client      Client
	id          message.SessionID
	pingCounter atomic.Uint64 // the counter of the last ping
	// rejoinRooms means that the client relies on the session for its rooms
	// (rooms=1), so that each change of them is saved soon.
	rejoinRooms   bool
	resumedRooms  int  // set by Attach, then never changed
	fromOtherNode bool // another node owned the session before; set by Attach, then never changed
	// roomsToRejoin are the rooms of a resumed session. They belong to the reader.
	roomsToRejoin []message.RoomPosition
	// upToDate means that the client's rooms are those of the session. It is
	// set at once for a new session, and for a resumed one when the client is live
	// in all its rooms.
	upToDate atomic.Bool

	// mu protects the fields below.
	mu     sync.Mutex
	record message.Session // as saved, or as the next save will store it
	saved  bool            // the last save succeeded
	// joinsPending means that, with rejoinRooms, some joins were not complete at
	// the last save.
	joinsPending bool
	failedSaves  int       // failed saves in a row, since there was a new reason to save
	lastSoon     time.Time // of RoomsChanged
	detached     bool      // the connection has ended: record.Rooms are final
	released     bool      // a newer connection owns the session, or it was deleted
	// closeTimer closes the older connection of a takeover, at closeAt.
	closeTimer *time.Timer
	closeAt    time.Time
}

// IsFromOtherNode reports whether another node owned the session before.
func (s *Session) IsFromOtherNode() bool { return s != nil && s.fromOtherNode }

// ID returns the public name of the session, "" without one.
func (s *Session) ID() message.SessionID {
	if s == nil {
		return ""
	}
	return s.id
}

// ResumedRooms returns the number of rooms of a resumed session, which its client will
// join.
func (s *Session) ResumedRooms() int {
	if s == nil {
		return 0
	}
	return s.resumedRooms
}

// RoomsToRejoin returns the rooms of a resumed session with their confirmed positions,
// once, if the client relies on the session for them. The connection's reader calls it.
func (s *Session) RoomsToRejoin() []message.RoomPosition {
	if s == nil || !s.rejoinRooms {
		return nil
	}
	rooms := s.roomsToRejoin
	s.roomsToRejoin = nil
	return rooms
}

// RoomsChanged saves the session soon if the client relies on it for its rooms. It is
// called after a join and a leave.
func (s *Session) RoomsChanged() {
	if s == nil || !s.rejoinRooms {
		return
	}
	s.forgetFailedSaves()
	if s.maySaveSoon(time.Now()) {
		s.set.writer.scheduleSoon(s)
	} else {
		s.set.writer.schedule(s)
	}
}

// soonPerRoom is the time between two saves soon for each room of a session: a save has all
// of them, so that one of a thousand rooms costs as much a second as one of few.
const soonPerRoom = time.Millisecond

// maySaveSoon reports whether the last save soon was long enough ago, and counts one.
func (s *Session) maySaveSoon(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.lastSoon) < time.Duration(len(s.record.Rooms))*soonPerRoom {
		return false
	}
	s.lastSoon = now
	return true
}

// PingSent records which frames were sent before the ping that has this counter. It is
// called just before the ping is sent.
func (s *Session) PingSent(counter uint64) {
	if s != nil {
		s.client.PingSent()
		s.pingCounter.Store(counter)
	}
}

// PongReceived handles the answer to a ping: everything that was sent before that
// ping has arrived.
func (s *Session) PongReceived(counter uint64) {
	if s != nil && s.pingCounter.Load() == counter {
		s.client.PongReceived()
		s.forgetFailedSaves()
		s.set.writer.schedule(s)
	}
}

// forgetFailedSaves lets the next save be tried maxSaveTries times: there is a new reason for
// it.
func (s *Session) forgetFailedSaves() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failedSaves = 0
}

// IsReleased reports whether a newer connection owns the session, or it was deleted.
func (s *Session) IsReleased() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released
}

// Detach records that the connection has ended. It deletes the session if the client
// closed the connection with 1000, and saves it otherwise. It is called while the
// client is still in its rooms.
func (s *Session) Detach(endedByClient bool) {
	if s == nil {
		return
	}
	defer s.set.index.remove(s) // a takeover until then keeps this connection from saving
	rooms, _ := s.client.Positions(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closeTimer != nil {
		s.closeTimer.Stop()
	}
	s.detached, s.failedSaves = true, 0
	switch {
	case endedByClient:
		s.released = true
		s.set.cfg.Events.End(s.record)
	case !s.released:
		if s.isUpToDate() {
			s.setRooms(rooms)
		}
		s.set.writer.scheduleSoon(s)
	}
}

// isUnsaved reports whether another node could not resume the session, because it is
// not saved. s may be nil.
func (s *Session) isUnsaved() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.saved && !s.released && !s.detached
}

// setRooms stores the client's positions, and reports whether they changed. Caller
// holds mu.
func (s *Session) setRooms(rooms []message.RoomPosition) bool {
	if slices.Equal(rooms, s.record.Rooms) {
		return false
	}
	s.record.Rooms = rooms
	s.record.Revision++
	return true
}

// pendingSave returns what must be saved of the session now. It returns false if
// another connection owns the session or it was deleted.
func (s *Session) pendingSave() (message.SessionSave, bool) {
	s.mu.Lock()
	detached := s.detached
	s.mu.Unlock()
	var rooms []message.RoomPosition
	current, complete := !detached && s.isUpToDate(), false
	if current {
		rooms, complete = s.client.Positions(nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joinsPending = s.rejoinRooms && !s.detached && !complete
	if s.released {
		return message.SessionSave{}, false
	}
	changed := s.detached
	if current && !s.detached {
		changed = s.setRooms(rooms)
	}
	save := message.SessionSave{Session: s.record, Renew: s.saved && !changed}
	if save.Renew {
		save.Rooms = nil
	}
	return save, true
}

// isUpToDate reports whether the client's rooms are those of the session. After
// TakeoverTimeout they are: the client is no longer expected to rejoin the missing
// ones.
func (s *Session) isUpToDate() bool {
	return s.upToDate.Load() || time.Since(s.connection.Started()) > s.set.cfg.TakeoverTimeout
}

// handleSaveResult handles the result of a save, and reports whether to save again.
func (s *Session) handleSaveResult(r message.SaveResult) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = r == message.SaveDone
	switch r {
	case message.SaveSuperseded:
		s.released = true
		s.closeReplacedIn(s.set.cfg.TakeoverTimeout)
	case message.SaveMissing:
		return true
	case message.SaveFailed:
		s.failedSaves++
		return s.failedSaves < maxSaveTries
	case message.SaveDone:
		s.failedSaves = 0
		return s.joinsPending
	}
	return false
}

// handleTakeover is the part of one connection in Set.HandleTakeover.
func (s *Session) handleTakeover(event message.NodeEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record.Generation >= event.Generation {
		return
	}
	s.released = true
	// A client that was asked to move closes this connection itself, after it has
	// joined rooms that may not be saved in the session yet.
	if event.Kind == message.EventSessionLive && !s.connection.IsAskedToMove() {
		s.closeReplacedIn(oldConnectionTimeout)
	} else {
		s.closeReplacedIn(s.set.cfg.TakeoverTimeout)
	}
}

// closeReplacedIn closes the older connection of a takeover after d, unless it ends
// before. If it is called twice, the earlier time applies. Caller holds mu.
func (s *Session) closeReplacedIn(d time.Duration) {
	at := time.Now().Add(d)
	if s.detached || s.closeTimer != nil && s.closeAt.Before(at) {
		return
	}
	if s.closeTimer != nil {
		s.closeTimer.Stop()
	}
	s.closeAt = at
	s.closeTimer = time.AfterFunc(d, func() { s.connection.CloseWith(protocol.CloseReplaced) })
}
