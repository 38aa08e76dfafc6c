package hub

import "switchyard/internal/message"

// A position is a position in a room, in the epoch that it counts in.
type position struct {
	seq   message.Seq
	epoch message.Epoch
}

// sentPosition is up to where everything was handed to the member's outlet. Caller
// holds topic.mu.
func (m *member) sentPosition() position {
	if m.state == memberLive {
		return position{m.topic.last, m.topic.epoch}
	}
	return m.caughtUpTo
}

// PingSent notes what has been handed to the client's outlet by now. Whatever
// goes out next, such as a ping, follows it; so its answer proves that all of
// it arrived.
func (c *Client) PingSent() {
	c.eachMember(func(m *member) { m.sentAtPing = m.sentPosition() })
}

// PongReceived says that the client has answered what followed the last Pinged.
func (c *Client) PongReceived() {
	c.eachMember(func(m *member) {
		if m.sentAtPing.epoch != "" {
			m.confirmedUpTo = m.sentAtPing
		}
	})
}

// Positions appends how far the client provably got in each room that it was
// told it is in: as far as it said when it joined, at least. All is false while
// a join is not answered yet.
func (c *Client) Positions(to []message.Position) (positions []message.Position, all bool) {
	all = true
	c.eachMember(func(m *member) {
		if m.joinedSent {
			to = append(to, message.Position{Room: m.topic.room, Epoch: m.confirmedUpTo.epoch, Seq: m.confirmedUpTo.seq})
		} else {
			all = false
		}
	})
	return to, all
}

// eachMember calls f for each of the client's places in rooms, with the topic's
// lock held.
func (c *Client) eachMember(f func(*member)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.rooms {
		m.topic.mu.Lock()
		f(m)
		m.topic.mu.Unlock()
	}
}

// WhenLive has f called once, when the client has become live in so many
// rooms: at once where that is none. F must not block. It is called before the
// first join, if at all.
func (c *Client) WhenLive(rooms int, f func()) {
	if rooms <= 0 {
		f()
		return
	}
	c.onLive = f
	c.pendingRooms.Store(int32(min(rooms, 1<<30)))
}

// becameLive counts the member's first time, once. Caller holds topic.mu.
func (m *member) becameLive() {
	if m.wasLive {
		return
	}
	m.wasLive = true
	if c := m.client; c.pendingRooms.Load() > 0 && c.pendingRooms.Add(-1) == 0 {
		c.onLive()
	}
}
