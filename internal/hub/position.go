package hub

import "switchyard/internal/message"

// A position is an epoch and a seq: how far a reader has come in a room.
type position struct {
	seq   message.Seq
	epoch message.Epoch
}

// sentPosition returns the position up to which everything was sent to the
// member's outlet. Caller holds topic.mu.
func (m *member) sentPosition() position {
	if m.state == memberLive {
		return position{m.topic.last, m.topic.epoch}
	}
	return m.caughtUpTo
}

// PingSent records what was sent to the client's outlet so far. Call it before
// the ping is sent: the pong then confirms that all of it arrived.
func (c *Client) PingSent() {
	c.eachMember(func(m *member) { m.sentAtPing = m.sentPosition() })
}

// PongReceived records that the client answered the ping of the last PingSent.
func (c *Client) PongReceived() {
	c.eachMember(func(m *member) {
		if m.sentAtPing.epoch != "" {
			m.confirmedUpTo = m.sentAtPing
		}
	})
}

// Positions appends how far the client has confirmed the messages of each room
// whose join was answered: at least the position that it joined with. all is
// false while a join is unanswered.
func (c *Client) Positions(to []message.RoomPosition) (positions []message.RoomPosition, all bool) {
	all = true
	c.eachMember(func(m *member) {
		if m.joinedSent {
			to = append(to, message.RoomPosition{Room: m.topic.room, Epoch: m.confirmedUpTo.epoch, Seq: m.confirmedUpTo.seq})
		} else {
			all = false
		}
	})
	return to, all
}

// eachMember calls f for each of the client's rooms, with the topic's lock
// held.
func (c *Client) eachMember(f func(*member)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.rooms {
		m.topic.mu.Lock()
		f(m)
		m.topic.mu.Unlock()
	}
}

// WhenLive calls f once, when the client has become live in that many rooms; at
// once if rooms is 0. F must not block. Call WhenLive before the first join.
func (c *Client) WhenLive(rooms int, f func()) {
	if rooms <= 0 {
		f()
		return
	}
	c.onLive = f
	c.pendingRooms.Store(int32(min(rooms, 1<<30)))
}

// becameLive counts the first time that the member is live. Caller holds
// topic.mu.
func (m *member) becameLive() {
	if m.wasLive {
		return
	}
	m.wasLive = true
	if c := m.client; c.pendingRooms.Load() > 0 && c.pendingRooms.Add(-1) == 0 {
		c.onLive()
	}
}
