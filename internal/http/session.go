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
	// and takes it over from the connection that had it.
	Resume(ctx context.Context, secret, user string) (message.Session, bool, error)
	// Save stores sessions and extends their lifetime. It returns a result for
	// each.
	Save(context.Context, []message.SessionSave) []message.SaveResult
}

// Takeovers notify other nodes of a takeover. The methods do not block.
type Takeovers interface {
	// AnnounceLive notifies the node that had the session before that the newer
	// connection is live in its rooms.
	AnnounceLive(message.Session)
	// End deletes a session whose client said goodbye.
	End(message.Session)
}

// resumeTimeout bounds the lookup of a session in a handshake: one round trip, and
// as much again for the requests before it.
const resumeTimeout = time.Second

// goodbyeTimeout is how long a client that is live on the newer connection has to
// close the older one itself. Only the client knows which messages are still on
// their way.
const goodbyeTimeout = time.Second

// A sessionHandle is a connection's share in its session. After a takeover two
// connections have a handle of one session, and only the newer may save it.
type sessionHandle struct {
	pingCounter atomic.Uint64 // the counter of the last ping
	// managesRooms means that the client relies on the session for its rooms
	// (rooms=1), so that each change of them is saved soon.
	managesRooms  bool
	fromOtherNode bool // another node had the session before; static
	// roomsToRejoin are the rooms of a resumed session. They belong to readLoop.
	roomsToRejoin []message.RoomPosition
	// upToDate means that the client's rooms are those of the session: at once for
	// a new session, and for a resumed one when the client is live in all its
	// rooms.
	upToDate atomic.Bool

	mu sync.Mutex
	// Protects following.
	record message.Session // as last saved
	saved  bool            // the last save succeeded
	// joinsPending means that, with managesRooms, some joins were not complete at
	// the last save.
	joinsPending  bool
	failedSaves   int  // failed saves in a row
	deferredWaves int  // waves of a drain that waited for the first save
	detached      bool // the connection has ended: record.Rooms are final
	released      bool // a newer connection has the session, or it was deleted
	// closeTimer closes the older connection of a takeover, at closeAt.
	closeTimer *time.Timer
	closeAt    time.Time
}

// attachSession gives the connection its session: the one that the handshake
// offers, if it can be resumed, or a new one. It is called before any request is
// handled.
func (k *socket) attachSession(o protocol.Handshake, user string) (secret string, resumed bool) {
	s := k.server
	if s.cfg.Sessions == nil {
		return "", false
	}
	k.session = &sessionHandle{managesRooms: o.RejoinRooms}
	k.conn.onPong = k.pongReceived
	if session, ok := s.resume(o, user); ok {
		k.session.record, k.session.saved, k.session.roomsToRejoin = session, true, session.Rooms
		if k.session.fromOtherNode = session.PreviousNode != "" && session.PreviousNode != s.cfg.Node; k.session.fromOtherNode {
			s.handshakesMoved.count.Add(1)
		}
		k.client.WhenLive(len(session.Rooms), func() {
			k.session.upToDate.Store(true)
			s.cfg.Takeovers.AnnounceLive(session)
		})
		secret, resumed = o.Session, true
	} else {
		secret, k.session.record = s.cfg.Sessions.New(user)
		k.session.upToDate.Store(true)
	}
	k.client.SetSession(k.session.record.ID, k.session.record.Generation)
	s.sessions.add(k)
	s.sessionWriter.scheduleSoon(k)
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

// rejoin joins the rooms of a resumed session from their proven positions, as if
// the client had asked for it.
func (k *socket) rejoin() {
	if k.session == nil || !k.session.managesRooms {
		return
	}
	positions := k.session.roomsToRejoin
	k.session.roomsToRejoin = nil
	for _, p := range positions {
		k.dispatch(&protocol.Request{Type: protocol.TypeJoin, Room: p.Room, Epoch: p.Epoch, After: p.Seq, HasAfter: true})
	}
}

// pingSent marks the frames that were sent before the ping with this counter. The
// heartbeat calls it just before it sends the ping.
func (k *socket) pingSent(counter uint64) {
	// identified is checked first: before it is set, the reader may be setting
	// session.
	if k.identified.Load() && k.session != nil {
		k.client.PingSent()
		k.session.pingCounter.Store(counter)
	}
}

// pongReceived handles the answer to a ping: everything that was sent before that
// ping has arrived.
func (k *socket) pongReceived(counter uint64) {
	if k.session != nil && k.session.pingCounter.Load() == counter {
		k.client.PongReceived()
		k.server.sessionWriter.schedule(k)
	}
}

// detachSession ends the connection's part in its session. It deletes the session
// if the client said goodbye, and saves it otherwise. It is called while the client
// is still in its rooms.
func (k *socket) detachSession(goodbye bool) {
	if k.session == nil {
		return
	}
	rooms, _ := k.client.Positions(nil)
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	if k.session.closeTimer != nil {
		k.session.closeTimer.Stop()
	}
	k.session.detached = true
	switch {
	case goodbye:
		k.session.released = true
		k.server.cfg.Takeovers.End(k.session.record)
	case !k.session.released:
		if k.isUpToDate() {
			k.session.setRooms(rooms)
		}
		k.server.sessionWriter.scheduleSoon(k)
	}
}

// isUnsaved reports whether the connection has a session that another node could
// not resume, because it is not saved.
func (k *socket) isUnsaved() bool {
	// identified is checked first: before it is set, the reader may be setting
	// session.
	if !k.identified.Load() || k.session == nil {
		return false
	}
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	return !k.session.saved && !k.session.released && !k.session.detached
}

// deferMove reports whether the client waits for the next wave of a drain, until
// its session is saved. It returns true twice.
func (k *socket) deferMove() bool {
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	k.session.deferredWaves++
	return k.session.deferredWaves <= 2
}

// isMoving reports whether the client is moving to another connection or has moved.
// Then its goodbye on this one is no leave of its rooms.
func (k *socket) isMoving() bool {
	if k.moveAskedAt.Load() != 0 {
		return true
	}
	if k.session == nil {
		return false
	}
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	return k.session.released
}

// setRooms stores the client's positions, and reports whether they changed. Caller
// holds mu.
func (h *sessionHandle) setRooms(rooms []message.RoomPosition) bool {
	if slices.Equal(rooms, h.record.Rooms) {
		return false
	}
	h.record.Rooms = rooms
	h.record.Revision++
	return true
}

// pendingSave returns what must be saved of the session now. It returns false if
// another connection has the session or it was deleted.
func (k *socket) pendingSave() (message.SessionSave, bool) {
	h := k.session
	h.mu.Lock()
	detached := h.detached
	h.mu.Unlock()
	var rooms []message.RoomPosition
	current, complete := !detached && k.isUpToDate(), false
	if current {
		rooms, complete = k.client.Positions(nil)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joinsPending = h.managesRooms && !h.detached && !complete
	if h.released {
		return message.SessionSave{}, false
	}
	changed := h.detached
	if current && !h.detached {
		changed = h.setRooms(rooms)
	}
	save := message.SessionSave{Session: h.record, Renew: h.saved && !changed}
	if save.Renew {
		save.Rooms = nil
	}
	return save, true
}

// isUpToDate reports whether the client's rooms are those of the session. After
// TakeoverTimeout they are: the client will not come back to the missing ones.
func (k *socket) isUpToDate() bool {
	return k.session.upToDate.Load() || time.Since(k.started) > k.server.cfg.TakeoverTimeout
}

// handleSaveResult handles the result of a save, and reports whether to save again.
func (k *socket) handleSaveResult(r message.SaveResult) bool {
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	k.session.saved = r == message.SaveDone
	switch r {
	case message.SaveSuperseded:
		k.session.released = true
		k.closeReplacedIn(k.server.cfg.TakeoverTimeout)
	case message.SaveMissing:
		return true
	case message.SaveFailed:
		k.session.failedSaves++
		return k.session.failedSaves < maxSaveTries
	case message.SaveDone:
		k.session.failedSaves = 0
		return k.session.joinsPending
	}
	return false
}

// closeReplacedIn closes the older connection of a takeover after d, unless it ends
// before. Of two calls the earlier time counts. Caller holds session.mu.
func (k *socket) closeReplacedIn(d time.Duration) {
	at := time.Now().Add(d)
	if k.session.detached || k.session.closeTimer != nil && k.session.closeAt.Before(at) {
		return
	}
	if k.session.closeTimer != nil {
		k.session.closeTimer.Stop()
	}
	k.session.closeAt = at
	k.session.closeTimer = time.AfterFunc(d, func() { k.conn.CloseWith(protocol.CloseReplaced) })
}

// HandleNodeEvent handles a ban or a takeover on another node. It does not block.
func (s *Server) HandleNodeEvent(n message.NodeEvent) {
	if n.Kind == message.EventBanned {
		s.closeUser(n.User)
		return
	}
	if n.Kind != message.EventTakeover && n.Kind != message.EventSessionLive {
		return
	}
	for _, k := range s.sessions.find(n.Session) {
		k.session.mu.Lock()
		if k.session.record.Generation < n.Generation {
			k.session.released = true
			// A client that was asked to move says goodbye itself, after it has
			// joined rooms that its session may not know yet.
			if n.Kind == message.EventSessionLive && k.moveAskedAt.Load() == 0 {
				k.closeReplacedIn(goodbyeTimeout)
			} else {
				k.closeReplacedIn(k.server.cfg.TakeoverTimeout)
			}
		}
		k.session.mu.Unlock()
	}
}

// A sessionIndex finds the connections of a session: one, or two during a takeover
// on one node. It is safe for concurrent use.
type sessionIndex struct {
	mu      sync.Mutex
	sockets map[message.SessionID][]*socket
}

func (o *sessionIndex) add(k *socket) {
	if k.session == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sockets == nil {
		o.sockets = make(map[message.SessionID][]*socket)
	}
	id := k.session.record.ID // never changes
	o.sockets[id] = append(o.sockets[id], k)
}

func (o *sessionIndex) remove(k *socket) {
	if k.session == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	id := k.session.record.ID
	left := slices.DeleteFunc(o.sockets[id], func(other *socket) bool { return other == k })
	if len(left) == 0 {
		delete(o.sockets, id)
	} else {
		o.sockets[id] = left
	}
}

func (o *sessionIndex) find(id message.SessionID) []*socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.sockets[id])
}
