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

// Owners settle which of two sockets a session belongs to. They do not block.
type Owners interface {
	// Live tells the node that had the session before that its newer socket
	// is live in its rooms.
	Live(message.Session)
	// End forgets a session whose client said goodbye.
	End(message.Session)
}

// resumeTimeout bounds the look for a session in a handshake: the time of one
// round trip, and as much again for those that are made before.
const resumeTimeout = time.Second

// goodbyeTime is what a client has, once it is live on the newer socket, to
// close the older one itself: it is the one who knows what is still on its way.
const goodbyeTime = time.Second

// A held is a socket's hold on its session.
type held struct {
	pinged atomic.Uint64 // the counter of the last ping
	// rooms says that the client leaves it to the service which rooms it is
	// in, so that each change of them is kept soon.
	rooms bool
	came  bool // the session was another node's; static
	// rejoins are the rooms that a resumed session was in; readLoop's.
	rejoins []message.Position
	// settled says that the session's rooms are now what the client is in:
	// from the begin for a new one, for a resumed one once it is live in all
	// that it was in before.
	settled atomic.Bool

	mu sync.Mutex
	// Protects following.
	session message.Session // as it was saved last
	kept    bool            // and it was
	// unfinished says, with rooms, that some were not joined yet by then.
	unfinished bool
	failed     int  // saves in a row that were not
	waited     int  // waves of a drain, for its first save
	parted     bool // the socket has ended: session.Rooms are the last
	lost       bool // a newer socket owns it
	// timer closes the older socket of a takeover, at replaced.
	timer    *time.Timer
	replaced time.Time
}

// hold gives the socket its session: the one that the handshake offers, if
// that can be resumed, or a new one. It is called before anything is read.
func (k *socket) hold(o protocol.Offer, user string) (secret string, resumed bool) {
	s := k.server
	if s.cfg.Sessions == nil {
		return "", false
	}
	k.held = &held{rooms: o.Rooms}
	k.conn.onPong = k.pong
	if session, ok := s.resume(o, user); ok {
		k.held.session, k.held.kept, k.held.rejoins = session, true, session.Rooms
		if k.held.came = session.From != "" && session.From != s.cfg.Node; k.held.came {
			s.came.count.Add(1)
		}
		k.client.WhenLive(len(session.Rooms), func() {
			k.held.settled.Store(true)
			s.cfg.Owners.Live(session)
		})
		secret, resumed = o.Session, true
	} else {
		secret, k.held.session = s.cfg.Sessions.New(user)
		k.held.settled.Store(true)
	}
	k.client.SetSession(k.held.session.ID, k.held.session.Generation)
	s.owners.add(k)
	s.saver.soon(k)
	return secret, resumed
}

// resume asks for the session that a handshake offers. What can't be answered
// in time is not resumed: the client has its own positions.
func (s *Server) resume(o protocol.Offer, user string) (message.Session, bool) {
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
	return session, ok && (!o.Rooms || !session.Partial)
}

// rejoin joins the rooms of a resumed session from their proven positions, as
// if the client had asked for it.
func (k *socket) rejoin() {
	if k.held == nil || !k.held.rooms {
		return
	}
	rejoins := k.held.rejoins
	k.held.rejoins = nil
	for _, p := range rejoins {
		k.do(&protocol.Request{Type: protocol.TypeJoin, Room: p.Room, Epoch: p.Epoch, After: p.Seq, HasAfter: true})
	}
}

// ping notes what went out before the ping with this counter. It is called by
// the beat just before it sends it.
func (k *socket) ping(counter uint64) {
	// Introduced first: until then the reader may still be about to set held.
	if k.introduced.Load() && k.held != nil {
		k.client.Pinged()
		k.held.pinged.Store(counter)
	}
}

// pong notes that all that went out before a ping has arrived.
func (k *socket) pong(counter uint64) {
	if k.held != nil && k.held.pinged.Load() == counter {
		k.client.Ponged()
		k.server.saver.add(k)
	}
}

// part takes leave of the session when the socket ends: one whose client said
// goodbye is forgotten, any other is kept where it stands. It is called while
// the client is still in its rooms.
func (k *socket) part(goodbye bool) {
	if k.held == nil {
		return
	}
	rooms, _ := k.client.Positions(nil)
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	if k.held.timer != nil {
		k.held.timer.Stop()
	}
	k.held.parted = true
	switch {
	case goodbye:
		k.held.lost = true
		k.server.cfg.Owners.End(k.held.session)
	case !k.held.lost:
		if k.isSettled() {
			k.held.set(rooms)
		}
		k.server.saver.soon(k)
	}
}

// unkept says whether the socket has a session of its own that could not be
// resumed elsewhere, since it was not saved.
func (k *socket) unkept() bool {
	// Introduced first: until then the reader may still be about to set held.
	if !k.introduced.Load() || k.held == nil {
		return false
	}
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	return !k.held.kept && !k.held.lost && !k.held.parted
}

// waits says whether the socket stays for another wave of a drain, for its
// session to be kept. It does so twice.
func (k *socket) waits() bool {
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	k.held.waited++
	return k.held.waited <= 2
}

// moves says whether the client is on its way to another socket, or already
// there: then its goodbye to this one is none to its rooms.
func (k *socket) moves() bool {
	if k.told.Load() != 0 {
		return true
	}
	if k.held == nil {
		return false
	}
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	return k.held.lost
}

// set takes over where the client stands, and says whether that is news.
// Caller holds mu.
func (h *held) set(rooms []message.Position) bool {
	if slices.Equal(rooms, h.session.Rooms) {
		return false
	}
	h.session.Rooms = rooms
	h.session.Revision++
	return true
}

// state is what is to be saved of the socket's session now; false: nothing, it
// is another's or forgotten.
func (k *socket) state() (message.SessionSave, bool) {
	h := k.held
	h.mu.Lock()
	parted := h.parted
	h.mu.Unlock()
	var rooms []message.Position
	current, all := !parted && k.isSettled(), false
	if current {
		rooms, all = k.client.Positions(nil)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unfinished = h.rooms && !h.parted && !all
	if h.lost {
		return message.SessionSave{}, false
	}
	news := h.parted
	if current && !h.parted {
		news = h.set(rooms)
	}
	save := message.SessionSave{Session: h.session, Touch: h.kept && !news}
	if save.Touch {
		save.Rooms = nil
	}
	return save, true
}

// isSettled says whether the client's rooms are the session's by now. One that
// has not come back to all of them in time will not.
func (k *socket) isSettled() bool {
	return k.held.settled.Load() || time.Since(k.started) > k.server.cfg.Takeover
}

// saved takes what became of a save; true: it is to be saved again.
func (k *socket) saved(r message.SaveResult) bool {
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	k.held.kept = r == message.SaveDone
	switch r {
	case message.SaveSuperseded:
		k.held.lost = true
		k.replaceIn(k.server.cfg.Takeover)
	case message.SaveMissing:
		return true
	case message.SaveFailed:
		k.held.failed++
		return k.held.failed < saveTries
	case message.SaveDone:
		k.held.failed = 0
		return k.held.unfinished
	}
	return false
}

// replaceIn closes the older socket of a takeover after a while, unless it is
// gone before. The sooner of two calls counts. Caller holds held.mu.
func (k *socket) replaceIn(d time.Duration) {
	at := time.Now().Add(d)
	if k.held.parted || k.held.timer != nil && k.held.replaced.Before(at) {
		return
	}
	if k.held.timer != nil {
		k.held.timer.Stop()
	}
	k.held.replaced = at
	k.held.timer = time.AfterFunc(d, func() { k.conn.CloseWith(protocol.CloseReplaced) })
}

// Notify takes what another node has to tell of sessions and users. It does not block.
func (s *Server) Notify(n message.Notice) {
	if n.Kind == message.NoticeRemoved {
		s.remove(n.User)
		return
	}
	if n.Kind != message.NoticeTaken && n.Kind != message.NoticeLive {
		return
	}
	for _, k := range s.owners.of(n.Session) {
		k.held.mu.Lock()
		if k.held.session.Generation < n.Generation {
			k.held.lost = true
			// A client that was told to move says goodbye by itself, once it is in
			// rooms that its session may not know of yet.
			if n.Kind == message.NoticeLive && k.told.Load() == 0 {
				k.replaceIn(goodbyeTime)
			} else {
				k.replaceIn(k.server.cfg.Takeover)
			}
		}
		k.held.mu.Unlock()
	}
}

// owners finds the sockets of a session: one, or two during a takeover on one
// node. Safe for concurrent use.
type owners struct {
	mu      sync.Mutex
	sockets map[message.SessionID][]*socket
}

func (o *owners) add(k *socket) {
	if k.held == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sockets == nil {
		o.sockets = make(map[message.SessionID][]*socket)
	}
	id := k.held.session.ID // never changes
	o.sockets[id] = append(o.sockets[id], k)
}

func (o *owners) remove(k *socket) {
	if k.held == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	id := k.held.session.ID
	left := slices.DeleteFunc(o.sockets[id], func(other *socket) bool { return other == k })
	if len(left) == 0 {
		delete(o.sockets, id)
	} else {
		o.sockets[id] = left
	}
}

func (o *owners) of(id message.SessionID) []*socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.sockets[id])
}
