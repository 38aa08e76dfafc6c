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

// A Client is one connection as the hub sees it. The goroutine that reads the
// socket calls it with one request after the other; the answers may come from
// other goroutines.
type Client struct {
	hub    *Hub
	out    Outlet
	user   string
	reader string // whose reads it counts against; "" for none

	// session is "" for a client without one. Both are written before the first
	// join.
	session    message.SessionID
	generation int64

	// publishSlots holds a token for each uncommitted publish, joinSlots one
	// for each unanswered join. The reading goroutine makes both when it first
	// needs them.
	publishSlots chan struct{}
	joinSlots    chan struct{}

	// onLive is called when pendingRooms, the number of rooms in which the
	// client is still to become live, reaches 0. It is written before the first
	// join.
	onLive       func()
	pendingRooms atomic.Int32

	catchUpQueue catchUpQueue

	// mu protects rooms.
	mu    sync.Mutex
	rooms []*member // a slice, because most clients are in few rooms
}

// maxPendingJoins bounds the unanswered joins of one client.
const maxPendingJoins = 32

// errReplaced answers a join that was left or repeated before it was answered.
var errReplaced error = &message.InvalidError{Field: "room", Reason: "was left, or joined again, before this join was done"}

// Member states.
const (
	memberPending = iota // joining or catching up, not in topic.members
	memberLive
	memberGone
)

// A member is one client in one room, from a join to the end of that
// membership.
type member struct {
	client *Client
	topic  *topic
	ref    protocol.Ref

	// Guarded by topic.mu.
	state         int
	index         int      // in topic.members, while the member is live
	joinedSent    bool     // the join was answered
	wasLive       bool     // the member has been live once
	caughtUpTo    position // while not live: everything up to here was sent
	sentAtPing    position // sentPosition at the last ping
	confirmedUpTo position // the client has confirmed everything up to here

	// joinSlot is the client's joinSlots while this join holds a token of it.
	// once returns the token only once.
	joinSlot chan struct{}
	once     sync.Once
}

// releaseJoinSlot returns the join's token. It may be called more than once.
func (m *member) releaseJoinSlot() {
	if m.joinSlot != nil {
		m.once.Do(func() { <-m.joinSlot })
	}
}

// acquireJoinSlot waits until the client has fewer than maxPendingJoins
// unanswered joins. The wait is bounded, because each of them is answered or
// refused in time.
func (c *Client) acquireJoinSlot() chan struct{} {
	if c.joinSlots == nil {
		c.joinSlots = make(chan struct{}, maxPendingJoins)
	}
	c.joinSlots <- struct{}{}
	return c.joinSlots
}

// NewClient returns a client that is in no room. User is "" for an anonymous
// one. Reader is the name by which what is read for the client is counted over all
// nodes, "" if it is not.
func (h *Hub) NewClient(out Outlet, user, reader string) *Client {
	return &Client{hub: h, out: out, user: user, reader: reader}
}

// Handle performs a validated request. Answers go to the outlet, now or later;
// the caller sends a returned error to the client. It blocks while the client
// has MaxInflight uncommitted publishes or maxPendingJoins unanswered joins,
// and while it reads history.
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
		return c.answer(ctx, r, c.sendHistory)
	case protocol.TypePresence:
		return c.answer(ctx, r, c.sendPresence)
	default:
		return protocol.ErrUnknownType
	}
	return nil
}

// answer answers a read when the client has taken the answer to the last one.
func (c *Client) answer(ctx context.Context, r *protocol.Request, read func(context.Context, *protocol.Request) error) error {
	if err := c.out.Answered(ctx); err != nil {
		return message.ErrUnavailable
	}
	return read(ctx, r)
}

// readerKey returns the key by which the client's reads take turns with others'.
func (c *Client) readerKey() any {
	if c.reader == "" {
		return c
	}
	return c.reader
}

// Close removes the client from all its rooms. Its publishes are still stored.
// If clean is false, its session stays present for a grace period, because it
// may be reconnecting.
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

// RoomCount returns the number of rooms that the client is in.
func (c *Client) RoomCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rooms)
}

// join makes the client a member. The member gets the answer when the room is
// ready. A second join replaces the first, whose membership ends before the new
// one begins.
func (c *Client) join(r *protocol.Request) error {
	m := &member{client: c, ref: r.Ref}
	c.mu.Lock()
	old := c.removeRoom(r.Room)
	if old == nil && len(c.rooms) >= c.hub.cfg.MaxRooms {
		c.mu.Unlock()
		return &protocol.Error{Code: protocol.CodeTooManyRooms, Message: "leave a room first: this connection is in as many as it may"}
	}
	if err := c.hub.roomQuota.join(c.reader, old != nil); err != nil {
		c.mu.Unlock()
		return err
	}
	m.topic = c.hub.acquire(r.Room)
	c.rooms = append(c.rooms, m)
	c.mu.Unlock()
	if old != nil {
		old.retire(nil, errReplaced, message.PresenceDisconnected) // not left: the session is back in a moment
	}
	p := catchUpProgress{position: position{r.After, r.Epoch}, fromNow: !r.HasAfter}
	if p.seq == 0 {
		p.epoch = "" // position 0 is valid in every epoch
	}
	m.startJoin(p)
	return nil
}

// leave ends a membership and answers at once. It sends the answer under the
// topic's lock, after everything that was being sent to the member.
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

// removeRoom removes the room's member from the list and returns it, or nil if
// there is none. The list has no order. Caller holds mu.
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

// removeIfCurrent removes a member from the list. It returns false if the
// member was left or replaced.
func (c *Client) removeIfCurrent(m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.rooms, m) {
		return false
	}
	c.removeRoom(m.topic.room)
	return true
}

// retire ends a membership: no frame of the room follows except those that
// retire itself sends: an error with the reason, if the join was never answered
// or the access was revoked, and then, if leave is set, the answer to that
// leave.
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
		m.client.out.Send(t.hub.clientError(reason).Encode("", t.room, "")) // without a ref: the join was answered
	case !m.joinedSent && reason != nil && (m.ref != "" || !errors.Is(reason, errReplaced)):
		m.client.out.Send(t.hub.clientError(reason).Encode(m.ref, t.room, ""))
	}
	if leave != nil {
		m.client.out.Send(protocol.Left(*leave, t.room, t.epoch, t.last, min(t.first, t.last+1)))
	}
	t.mu.Unlock()
	t.hub.roomQuota.leave(m.client.reader)
	t.hub.release(t)
}
