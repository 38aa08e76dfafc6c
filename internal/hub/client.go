package hub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A Client is one connection as the hub sees it. Its requests come one after
// the other, from the goroutine that reads its socket; what they cause may
// happen on others.
type Client struct {
	hub  *Hub
	out  Outlet
	user string

	// session is "" for a client without one; both are written before the
	// first join.
	session    message.SessionID
	generation int64

	// slots holds a token for each publish under way, joins one for each join
	// that is not answered; both are made when first needed, by the reader.
	publishSlots chan struct{}
	joinSlots    chan struct{}

	// onLive is called when awaited, the rooms it is still to become live in,
	// comes to 0; it is written before the first join.
	onLive       func()
	pendingRooms atomic.Int32

	catchUpQueue catchUpQueue

	mu sync.Mutex
	// Protects following.
	rooms []*member // a slice: most clients are in few rooms
}

// maxPendingJoins bounds the joins of one client that wait for their answer.
const maxPendingJoins = 32

// errReplaced answers a join that was left, or repeated, before it was done.
var errReplaced error = &message.InvalidError{Field: "room", Reason: "was left, or joined again, before this join was done"}

// Member states.
const (
	memberPending = iota // joining, or catching up: not in topic.members
	memberLive
	memberGone
)

// A member is a client's place in a room.
type member struct {
	client *Client
	topic  *topic
	ref    protocol.Ref

	// Guarded by topic.mu.
	state         int
	index         int      // in topic.members, while live
	joinedSent    bool     // joined was sent
	wasLive       bool     // it was live once
	caughtUpTo    position // while not live: up to where its outlet was handed everything
	sentAtPing    position // the same when the last ping went out
	confirmedUpTo position // and up to where the client has proved that it got it

	// unanswered is the client's joins while this one holds a token of it, and
	// once sees to it that the token is given back once.
	joinSlot chan struct{}
	once     sync.Once
}

// releaseJoinSlot gives the join's token back.
func (m *member) releaseJoinSlot() {
	if m.joinSlot != nil {
		m.once.Do(func() { <-m.joinSlot })
	}
}

// acquireJoinSlot waits until the client has fewer than maxPendingJoins without an answer:
// bounded, since each is answered or refused in time.
func (c *Client) acquireJoinSlot() chan struct{} {
	if c.joinSlots == nil {
		c.joinSlots = make(chan struct{}, maxPendingJoins)
	}
	c.joinSlots <- struct{}{}
	return c.joinSlots
}

// NewClient returns a client that is in no room. User is "" for anonymous ones.
func (h *Hub) NewClient(out Outlet, user string) *Client {
	return &Client{hub: h, out: out, user: user}
}

// Handle does what a checked request asks for. Answers go to the outlet, here
// or later; an error is the request's and is to be sent to the client. It
// blocks while the client has as many publishes under way as it may, and while
// its history is read.
func (c *Client) Handle(ctx context.Context, r *protocol.Request) error {
	if r.Room.Reserved() {
		return &protocol.Error{Code: protocol.CodeForbidden, Message: "rooms that begin with _ belong to the service"}
	}
	switch r.Type {
	case protocol.TypeJoin:
		return c.join(r)
	case protocol.TypeLeave:
		return c.leave(r)
	case protocol.TypePublish:
		c.publish(r)
	case protocol.TypeSignal:
		c.hub.signal(r.Room, c.user, r.Data)
	case protocol.TypeHistory:
		return c.history(ctx, r)
	case protocol.TypePresence:
		return c.presence(ctx, r)
	default:
		return protocol.ErrUnknownType
	}
	return nil
}

// Close takes the client out of all its rooms. What it published is stored all
// the same. Without a goodbye its session stays present for a moment: it may be
// on the way back.
func (c *Client) Close(clean bool) {
	kind := message.PresenceDisconnected
	if clean {
		kind = message.PresenceLeft
	}
	c.mu.Lock()
	rooms := c.rooms
	c.rooms = nil
	c.mu.Unlock()
	for _, m := range rooms {
		m.retire(nil, nil, kind)
	}
}

// RoomCount returns in how many rooms the client is.
func (c *Client) RoomCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rooms)
}

// join makes the client a member; the answer comes when the room is ready for
// it. A second join replaces the first, which ends before the new one begins.
func (c *Client) join(r *protocol.Request) error {
	m := &member{client: c, ref: r.Ref}
	c.mu.Lock()
	old := c.removeRoom(r.Room)
	if old == nil && len(c.rooms) >= c.hub.cfg.MaxRooms {
		c.mu.Unlock()
		return &protocol.Error{Code: protocol.CodeTooManyRooms, Message: "leave a room first: this connection is in as many as it may"}
	}
	m.topic = c.hub.acquire(r.Room)
	c.rooms = append(c.rooms, m)
	c.mu.Unlock()
	if old != nil {
		old.retire(nil, errReplaced, message.PresenceDisconnected) // it is about to be back
	}
	p := progress{seq: r.After, epoch: r.Epoch, fromNow: !r.HasAfter}
	if p.seq == 0 {
		p.epoch = "" // before the first is the same place in every epoch
	}
	m.startJoin(p)
	return nil
}

// leave ends a membership and answers at once: the topic's lock is between the
// answer and whatever was being handed to the member.
func (c *Client) leave(r *protocol.Request) error {
	c.mu.Lock()
	m := c.removeRoom(r.Room)
	c.mu.Unlock()
	if m == nil {
		return &message.InvalidError{Field: "room", Reason: "is not one that this connection has joined"}
	}
	m.retire(&r.Ref, errReplaced, message.PresenceLeft)
	return nil
}

// removeRoom takes the room's member out of the list, nil where it has none. The list
// keeps no order. Caller holds mu.
func (c *Client) removeRoom(room message.Room) *member {
	for i, m := range c.rooms {
		if m.topic.room != room {
			continue
		}
		last := len(c.rooms) - 1
		c.rooms[i] = c.rooms[last]
		c.rooms[last] = nil
		c.rooms = c.rooms[:last]
		return m
	}
	return nil
}

// removeIfCurrent takes a membership off the list, unless it was left or replaced.
func (c *Client) removeIfCurrent(m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.rooms, m) {
		return false
	}
	c.removeRoom(m.topic.room)
	return true
}

// retire ends a membership: nothing of the room follows, but for the answer to
// a leave, whose ref is given then, and before it why a join that was never
// answered came to nothing.
func (m *member) retire(leave *protocol.Ref, reason error, kind message.PresenceKind) {
	t := m.topic
	t.mu.Lock()
	if m.state == memberGone {
		t.mu.Unlock()
		return
	}
	if m.state == memberLive {
		t.remove(m)
	}
	m.state = memberGone
	t.unwatchPresence(m)
	if m.joinedSent {
		m.reportPresence(kind)
	}
	switch {
	case errors.Is(reason, errAccessRevoked) && m.joinedSent:
		m.client.out.Send(t.hub.clientError(reason).Encode("", t.room, "")) // its join was answered
	case !m.joinedSent && reason != nil && (m.ref != "" || !errors.Is(reason, errReplaced)):
		m.client.out.Send(t.hub.clientError(reason).Encode(m.ref, t.room, ""))
	}
	if leave != nil {
		m.client.out.Send(protocol.Left(*leave, t.room, t.epoch, t.last, min(t.first, t.last+1)))
	}
	t.mu.Unlock()
	t.hub.release(t)
}

// history answers with a page of the log. It is the reader that waits for it,
// and so the client's next request.
func (c *Client) history(ctx context.Context, r *protocol.Request) error {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	q := message.Range{Room: r.Room, After: r.After, Before: r.Before, Limit: r.Limit}
	if !r.HasAfter && !r.HasBefore {
		q.Before = protocol.MaxSeq // the newest
	}
	page, err := c.hub.History(ctx, q)
	if err != nil {
		c.hub.logger.Warn("history not read", "error", err)
		return message.ErrUnavailable
	}
	c.out.Send(protocol.History(r.Ref, r.Room, &page))
	return nil
}
