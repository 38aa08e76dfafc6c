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

// Sessions keep what of a client outlives its socket, wherever it comes back.
type Sessions interface {
	// New makes a session; the first Save keeps it.
	New(user string) (secret string, s message.Session)
	// Resume takes the session of a secret over, if it is this user's.
	Resume(ctx context.Context, secret, user string) (message.Session, bool, error)
	// Save keeps sessions for another lifetime, with a result for each.
	Save(context.Context, []message.SessionSave) []message.SaveResult
}

// Takeovers settle which of two sockets a session belongs to. They do not block.
type Takeovers interface {
	// AnnounceLive tells the node that had the session before that its newer socket
	// is live in its rooms.
	AnnounceLive(message.Session)
	// End forgets a session whose client said goodbye.
	End(message.Session)
}

// resumeTimeout bounds the look for a session in a handshake: the time of one
// round trip, and as much again for those that are made before.
const resumeTimeout = time.Second

// goodbyeTimeout is what a client has, once it is live on the newer socket, to
// close the older one itself: it is the one who knows what is still on its way.
const goodbyeTimeout = time.Second

// A sessionHandle is a socket's hold on its session.
type sessionHandle struct {
	pingCounter atomic.Uint64 // the counter of the last ping
	// rooms says that the client leaves it to the service which rooms it is
	// in, so that each change of them is kept soon.
	managesRooms  bool
	fromOtherNode bool // the session was another node's; static
	// rejoins are the rooms that a resumed session was in; readLoop's.
	roomsToRejoin []message.Position
	// settled says that the session's rooms are now what the client is in:
	// from the begin for a new one, for a resumed one once it is live in all
	// that it was in before.
	upToDate atomic.Bool

	mu sync.Mutex
	// Protects following.
	record message.Session // as it was saved last
	saved  bool            // and it was
	// unfinished says, with rooms, that some were not joined yet by then.
	joinsPending  bool
	failedSaves   int  // saves in a row that were not
	deferredWaves int  // waves of a drain, for its first save
	detached      bool // the socket has ended: session.Rooms are the last
	released      bool // a newer socket owns it
	// timer closes the older socket of a takeover, at replaced.
	closeTimer *time.Timer
	closeAt    time.Time
}

// attachSession gives the socket its session: the one that the handshake offers, if
// that can be resumed, or a new one. It is called before anything is read.
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

// resume asks for the session that a handshake offers. What can't be answered
// in time is not resumed: the client has its own positions.
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
	// Rooms that were too many to be kept are none that it could rejoin.
	return session, ok && (!o.RejoinRooms || !session.Partial)
}

// rejoin joins the rooms of a resumed session from their proven positions, as
// if the client had asked for it.
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

// pingSent notes what went out before the ping with this counter. It is called by
// the beat just before it sends it.
func (k *socket) pingSent(counter uint64) {
	// Introduced first: until then the reader may still be about to set held.
	if k.identified.Load() && k.session != nil {
		k.client.PingSent()
		k.session.pingCounter.Store(counter)
	}
}

// pongReceived notes that all that went out before a ping has arrived.
func (k *socket) pongReceived(counter uint64) {
	if k.session != nil && k.session.pingCounter.Load() == counter {
		k.client.PongReceived()
		k.server.sessionWriter.schedule(k)
	}
}

// detachSession takes leave of the session when the socket ends: one whose client said
// goodbye is forgotten, any other is kept where it stands. It is called while
// the client is still in its rooms.
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

// isUnsaved says whether the socket has a session of its own that could not be
// resumed elsewhere, since it was not saved.
func (k *socket) isUnsaved() bool {
	// Introduced first: until then the reader may still be about to set held.
	if !k.identified.Load() || k.session == nil {
		return false
	}
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	return !k.session.saved && !k.session.released && !k.session.detached
}

// deferMove says whether the socket stays for another wave of a drain, for its
// session to be kept. It does so twice.
func (k *socket) deferMove() bool {
	k.session.mu.Lock()
	defer k.session.mu.Unlock()
	k.session.deferredWaves++
	return k.session.deferredWaves <= 2
}

// isMoving says whether the client is on its way to another socket, or already
// there: then its goodbye to this one is none to its rooms.
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

// setRooms takes over where the client stands, and says whether that is news.
// Caller holds mu.
func (h *sessionHandle) setRooms(rooms []message.Position) bool {
	if slices.Equal(rooms, h.record.Rooms) {
		return false
	}
	h.record.Rooms = rooms
	h.record.Revision++
	return true
}

// pendingSave is what is to be saved of the socket's session now; false: nothing, it
// is another's or forgotten.
func (k *socket) pendingSave() (message.SessionSave, bool) {
	h := k.session
	h.mu.Lock()
	detached := h.detached
	h.mu.Unlock()
	var rooms []message.Position
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
	save := message.SessionSave{Session: h.record, Touch: h.saved && !changed}
	if save.Touch {
		save.Rooms = nil
	}
	return save, true
}

// isUpToDate says whether the client's rooms are the session's by now. One that
// has not come back to all of them in time will not.
func (k *socket) isUpToDate() bool {
	return k.session.upToDate.Load() || time.Since(k.started) > k.server.cfg.TakeoverTimeout
}

// handleSaveResult takes what became of a save; true: it is to be saved again.
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

// closeReplacedIn closes the older socket of a takeover after a while, unless it is
// gone before. The sooner of two calls counts. Caller holds held.mu.
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

// HandleNodeEvent takes what another node has to tell of sessions and users. It does not block.
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
			// A client that was told to move says goodbye by itself, once it is in
			// rooms that its session may not know of yet.
			if n.Kind == message.EventSessionLive && k.moveAskedAt.Load() == 0 {
				k.closeReplacedIn(goodbyeTimeout)
			} else {
				k.closeReplacedIn(k.server.cfg.TakeoverTimeout)
			}
		}
		k.session.mu.Unlock()
	}
}

// sessionIndex finds the sockets of a session: one, or two during a takeover on one
// node. Safe for concurrent use.
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
