package http

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// Sessions store what outlives a client's connection, on all nodes. Implementations
// are safe for concurrent use.
type Sessions interface {
	// New returns a new session. The first Save stores it.
	New(user string) (secret string, s message.Session)
	// Resume returns the stored session of a secret, if it belongs to this user,
	// and takes it over from the connection that owned it.
	Resume(ctx context.Context, secret, user string) (message.Session, bool, error)
	// Save stores sessions and extends their lifetime. It returns a result for
	// each.
	Save(context.Context, []message.SessionSave) []message.SaveResult
}

// SessionEvents report what happened to a session, to other nodes and to the shared
// state. The methods do not block.
type SessionEvents interface {
	// AnnounceLive tells the previous owner's node that the newer connection is
	// live in its rooms.
	AnnounceLive(message.Session)
	// End deletes a session whose client closed its connection with 1000.
	End(message.Session)
}

// resumeTimeout bounds the lookup of a session in a handshake: one round trip, and
// as much again for the requests before it.
const resumeTimeout = time.Second

// oldConnectionTimeout is how long a client that is live on the newer connection has
// to close the older one itself. Only the client knows which messages are still on
// their way.
const oldConnectionTimeout = time.Second

// A connectionSession is what a connection knows of its session. During a takeover
// two connections have the same session, and only the newer may save it.
type connectionSession struct {
	pingCounter atomic.Uint64 // the counter of the last ping
	// rejoinRooms means that the client relies on the session for its rooms
	// (rooms=1), so that each change of them is saved soon.
	rejoinRooms   bool
	fromOtherNode bool // another node owned the session before; set by attachSession, then never changed
	// roomsToRejoin are the rooms of a resumed session. They belong to readLoop.
	roomsToRejoin []message.RoomPosition
	// upToDate means that the client's rooms are those of the session. It is
	// set at once for a new session, and for a resumed one when the client is live
	// in all its rooms.
	upToDate atomic.Bool

	// mu protects the fields below.
	mu     sync.Mutex
	record message.Session // as last saved
	saved  bool            // the last save succeeded
	// joinsPending means that, with rejoinRooms, some joins were not complete at
	// the last save.
	joinsPending  bool
	failedSaves   int  // failed saves in a row
	deferredWaves int  // waves that did not ask this client, because its session was not saved yet
	detached      bool // the connection has ended: record.Rooms are final
	released      bool // a newer connection owns the session, or it was deleted
	// closeTimer closes the older connection of a takeover, at closeAt.
	closeTimer *time.Timer
	closeAt    time.Time
}

// attachSession gives the connection its session: the one that the handshake
// offers, if it can be resumed, or a new one. It is called before any request is
// handled.
func (sock *socket) attachSession(o protocol.Handshake, user string) (secret string, resumed bool) {
	s := sock.server
	if s.cfg.Sessions == nil {
		return "", false
	}
	sock.session = &connectionSession{rejoinRooms: o.RejoinRooms}
	sock.conn.onPong = sock.pongReceived
	if session, ok := s.resume(o, user); ok {
		sock.session.record, sock.session.saved, sock.session.roomsToRejoin = session, true, session.Rooms
		if sock.session.fromOtherNode = session.PreviousNode != "" && session.PreviousNode != s.cfg.Node; sock.session.fromOtherNode {
			s.handshakesMoved.count.Add(1)
		}
		sock.client.WhenLive(len(session.Rooms), func() {
			sock.session.upToDate.Store(true)
			s.cfg.SessionEvents.AnnounceLive(session)
		})
		secret, resumed = o.Session, true
	} else {
		secret, sock.session.record = s.cfg.Sessions.New(user)
		sock.session.upToDate.Store(true)
	}
	sock.client.SetSession(sock.session.record.ID, sock.session.record.Generation)
	s.sessions.add(sock)
	s.sessionWriter.scheduleSoon(sock)
	return secret, resumed
}

// resume looks up the session that a handshake offers. After resumeTimeout the
// client gets a new session; it knows its positions itself.
func (s *Server) resume(o protocol.Handshake, user string) (message.Session, bool) {
	if o.Session == "" {
		return message.Session{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), resumeTimeout)
	defer cancel()
	session, ok, err := s.cfg.Sessions.Resume(ctx, o.Session, user)
	if err != nil {
		s.log.Debug("session not resumed", "error", err)
	}
	// A session that could not store all its rooms can't rejoin them.
	return session, ok && (!o.RejoinRooms || !session.Partial)
}

// rejoin joins the rooms of a resumed session from their confirmed positions, as if
// the client had asked for it.
func (sock *socket) rejoin() {
	if sock.session == nil || !sock.session.rejoinRooms {
		return
	}
	positions := sock.session.roomsToRejoin
	sock.session.roomsToRejoin = nil
	for _, p := range positions {
		sock.dispatch(&protocol.Request{Type: protocol.TypeJoin, Room: p.Room, Epoch: p.Epoch, After: p.Seq, HasAfter: true})
	}
}

// pingSent records which frames were sent before the ping that has this counter. The
// heartbeat calls it just before it sends the ping.
func (sock *socket) pingSent(counter uint64) {
	// identified is checked first: before it is set, the reader may be setting
	// session.
	if sock.identified.Load() && sock.session != nil {
		sock.client.PingSent()
		sock.session.pingCounter.Store(counter)
	}
}

// pongReceived handles the answer to a ping: everything that was sent before that
// ping has arrived.
func (sock *socket) pongReceived(counter uint64) {
	if sock.session != nil && sock.session.pingCounter.Load() == counter {
		sock.client.PongReceived()
		sock.server.sessionWriter.schedule(sock)
	}
}

// detachSession records that the connection has ended. It deletes the session if the
// client closed the connection with 1000, and saves it otherwise. It is called while
// the client is still in its rooms.
func (sock *socket) detachSession(endedByClient bool) {
	if sock.session == nil {
		return
	}
	rooms, _ := sock.client.Positions(nil)
	sock.session.mu.Lock()
	defer sock.session.mu.Unlock()
	if sock.session.closeTimer != nil {
		sock.session.closeTimer.Stop()
	}
	sock.session.detached = true
	switch {
	case endedByClient:
		sock.session.released = true
		sock.server.cfg.SessionEvents.End(sock.session.record)
	case !sock.session.released:
		if sock.isUpToDate() {
			sock.session.setRooms(rooms)
		}
		sock.server.sessionWriter.scheduleSoon(sock)
	}
}

// isUnsaved reports whether the connection has a session that another node could
// not resume, because it is not saved.
func (sock *socket) isUnsaved() bool {
	// identified is checked first: before it is set, the reader may be setting
	// session.
	if !sock.identified.Load() || sock.session == nil {
		return false
	}
	sock.session.mu.Lock()
	defer sock.session.mu.Unlock()
	return !sock.session.saved && !sock.session.released && !sock.session.detached
}

// deferMove counts a wave of a drain that skips the client because its session is
// not saved, and reports whether to skip it: true for the first two waves.
func (sock *socket) deferMove() bool {
	sock.session.mu.Lock()
	defer sock.session.mu.Unlock()
	sock.session.deferredWaves++
	return sock.session.deferredWaves <= 2
}

// isMoving reports whether the client is moving to another connection or has moved.
// Then closing this connection does not make it leave its rooms.
func (sock *socket) isMoving() bool {
	if sock.moveRequest.IsMade() {
		return true
	}
	if sock.session == nil {
		return false
	}
	sock.session.mu.Lock()
	defer sock.session.mu.Unlock()
	return sock.session.released
}

// setRooms stores the client's positions, and reports whether they changed. Caller
// holds mu.
func (c *connectionSession) setRooms(rooms []message.RoomPosition) bool {
	if slices.Equal(rooms, c.record.Rooms) {
		return false
	}
	c.record.Rooms = rooms
	c.record.Revision++
	return true
}

// pendingSave returns what must be saved of the session now. It returns false if
// another connection owns the session or it was deleted.
func (sock *socket) pendingSave() (message.SessionSave, bool) {
	c := sock.session
	c.mu.Lock()
	detached := c.detached
	c.mu.Unlock()
	var rooms []message.RoomPosition
	current, complete := !detached && sock.isUpToDate(), false
	if current {
		rooms, complete = sock.client.Positions(nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joinsPending = c.rejoinRooms && !c.detached && !complete
	if c.released {
		return message.SessionSave{}, false
	}
	changed := c.detached
	if current && !c.detached {
		changed = c.setRooms(rooms)
	}
	save := message.SessionSave{Session: c.record, Renew: c.saved && !changed}
	if save.Renew {
		save.Rooms = nil
	}
	return save, true
}

// isUpToDate reports whether the client's rooms are those of the session. After
// TakeoverTimeout they are: the client is no longer expected to rejoin the missing
// ones.
func (sock *socket) isUpToDate() bool {
	return sock.session.upToDate.Load() || time.Since(sock.started) > sock.server.cfg.TakeoverTimeout
}

// handleSaveResult handles the result of a save, and reports whether to save again.
func (sock *socket) handleSaveResult(r message.SaveResult) bool {
	sock.session.mu.Lock()
	defer sock.session.mu.Unlock()
	sock.session.saved = r == message.SaveDone
	switch r {
	case message.SaveSuperseded:
		sock.session.released = true
		sock.closeReplacedIn(sock.server.cfg.TakeoverTimeout)
	case message.SaveMissing:
		return true
	case message.SaveFailed:
		sock.session.failedSaves++
		return sock.session.failedSaves < maxSaveTries
	case message.SaveDone:
		sock.session.failedSaves = 0
		return sock.session.joinsPending
	}
	return false
}

// closeReplacedIn closes the older connection of a takeover after d, unless it ends
// before. If it is called twice, the earlier time applies. Caller holds session.mu.
func (sock *socket) closeReplacedIn(d time.Duration) {
	at := time.Now().Add(d)
	if sock.session.detached || sock.session.closeTimer != nil && sock.session.closeAt.Before(at) {
		return
	}
	if sock.session.closeTimer != nil {
		sock.session.closeTimer.Stop()
	}
	sock.session.closeAt = at
	sock.session.closeTimer = time.AfterFunc(d, func() { sock.conn.CloseWith(protocol.CloseReplaced) })
}

// A sessionIndex finds the connections of a session: one, or two during a takeover
// on one node. It is safe for concurrent use.
type sessionIndex struct {
	mu      sync.Mutex
	sockets map[message.SessionID][]*socket
}

func (x *sessionIndex) add(sock *socket) {
	if sock.session == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sockets == nil {
		x.sockets = make(map[message.SessionID][]*socket)
	}
	id := sock.session.record.ID // never changes
	x.sockets[id] = append(x.sockets[id], sock)
}

func (x *sessionIndex) remove(sock *socket) {
	if sock.session == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	id := sock.session.record.ID
	remaining := slices.DeleteFunc(x.sockets[id], func(other *socket) bool { return other == sock })
	if len(remaining) == 0 {
		delete(x.sockets, id)
	} else {
		x.sockets[id] = remaining
	}
}

func (x *sessionIndex) find(id message.SessionID) []*socket {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.sockets[id])
}
