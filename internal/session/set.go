// Package session binds the connections of this node to their sessions: it resumes
// sessions, saves them, and closes the older connection of a takeover. It knows a
// connection and its client by interfaces only. DESIGN.md says why.
package session

import (
	"context"
	"log/slog"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A Store stores what outlives a client's connection, on all nodes. Implementations
// are safe for concurrent use.
type Store interface {
	// New returns a new session. The first Save stores it.
	New(user string) (secret string, s message.Session)
	// Resume returns the stored session of a secret, if it belongs to this user,
	// and takes it over from the connection that owned it.
	Resume(ctx context.Context, secret, user string) (message.Session, bool, error)
	// Save stores sessions and extends their lifetime. It returns a result for
	// each.
	Save(context.Context, []message.SessionSave) []message.SaveResult
}

// Events report what happened to a session, to other nodes and to the shared
// state. The methods do not block.
type Events interface {
	// AnnounceLive tells the previous owner's node that the newer connection is
	// live in its rooms.
	AnnounceLive(message.Session)
	// End deletes a session whose client closed its connection with 1000.
	End(message.Session)
}

// A Connection is one connection of a session. Implementations are safe for
// concurrent use.
type Connection interface {
	// Started returns when the connection began.
	Started() time.Time
	// IsAskedToMove reports whether a drain has asked the client to move.
	IsAskedToMove() bool
	// CloseWith closes the connection with a code, without blocking.
	CloseWith(protocol.CloseCode) bool
}

// A Client is a connection's client in the rooms of this node, as the hub knows it.
// Implementations are safe for concurrent use.
type Client interface {
	// SetSession sets the client's name in the presence of its rooms.
	SetSession(id message.SessionID, generation int64)
	// WhenLive calls f once the client is live in so many rooms.
	WhenLive(rooms int, f func())
	// PingSent and PongReceived confirm positions: what was sent before the ping has
	// arrived.
	PingSent()
	PongReceived()
	// Positions appends the confirmed positions in the client's rooms. It returns
	// false if some joins are not complete.
	Positions([]message.RoomPosition) ([]message.RoomPosition, bool)
}

// resumeTimeout bounds the lookup of a session in a handshake: one round trip, and
// as much again for the requests before it.
const resumeTimeout = time.Second

// Config is what a Set needs.
type Config struct {
	// Node is the name of this node.
	Node string
	// Store and Events keep the sessions. Both are nil if no sessions are kept.
	Store  Store
	Events Events
	// TakeoverTimeout is how long an older connection may stay open beside a newer one
	// that does not become live in its rooms.
	TakeoverTimeout time.Duration
	Log             *slog.Logger
}

// A Set holds the sessions of the connections of this node. It is safe for concurrent
// use.
type Set struct {
	cfg    Config
	index  index
	writer writer
}

// NewSet returns an empty set. SaveLoop saves its sessions.
func NewSet(cfg Config) *Set {
	return &Set{
		cfg:    cfg,
		index:  index{sessions: map[message.SessionID][]*Session{}},
		writer: writer{store: cfg.Store, wake: make(chan struct{}, 1), due: map[*Session]struct{}{}},
	}
}

// Attach gives a connection its session: the one that its handshake offers, if it can be
// resumed, or a new one. It is called before any request is handled. The session is
// nil if no sessions are kept.
func (set *Set) Attach(c Connection, client Client, o protocol.Handshake, user string) (s *Session, secret string, resumed bool) {
	if set.cfg.Store == nil {
		return nil, "", false
	}
	s = &Session{set: set, connection: c, client: client, rejoinRooms: o.RejoinRooms}
	if s.record, resumed = set.resume(o, user); resumed {
		resumedRecord := s.record
		secret, s.saved, s.roomsToRejoin = o.Session, true, s.record.Rooms
		s.resumedRooms = len(s.record.Rooms)
		s.fromOtherNode = s.record.PreviousNode != "" && s.record.PreviousNode != set.cfg.Node
		client.WhenLive(len(s.record.Rooms), func() {
			s.upToDate.Store(true)
			set.cfg.Events.AnnounceLive(resumedRecord)
		})
	} else {
		secret, s.record = set.cfg.Store.New(user)
		s.upToDate.Store(true)
	}
	s.id = s.record.ID
	client.SetSession(s.id, s.record.Generation)
	set.index.add(s)
	set.writer.scheduleSoon(s)
	return s, secret, resumed
}

// resume looks up the session that a handshake offers. After resumeTimeout the
// client gets a new session; it knows its positions itself.
func (set *Set) resume(o protocol.Handshake, user string) (message.Session, bool) {
	if o.Session == "" {
		return message.Session{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), resumeTimeout)
	defer cancel()
	session, ok, err := set.cfg.Store.Resume(ctx, o.Session, user)
	if err != nil {
		set.cfg.Log.Debug("session not resumed", "error", err)
	}
	// A session that could not store all its rooms can't rejoin them.
	return session, ok && (!o.RejoinRooms || !session.Partial)
}

// HandleTakeover handles the event that a newer connection owns a session, or is live in
// its rooms. It does not block.
func (set *Set) HandleTakeover(event message.NodeEvent) {
	for _, s := range set.index.find(event.Session) {
		s.handleTakeover(event)
	}
}

// SaveLoop saves changed sessions until stop closes, and then once more. It returns at
// once if no sessions are kept.
func (set *Set) SaveLoop(stop <-chan struct{}) {
	if set.cfg.Store != nil {
		set.writer.loop(stop)
	}
}
