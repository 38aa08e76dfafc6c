package hub

import (
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// errAccessRevoked is sent to a client that loses access to a room, before the
// left.
var errAccessRevoked = &protocol.Error{Code: protocol.CodeForbidden, Message: "the new token does not open this room any more"}

// Restrict removes the client from every room that is not allowed. For each of
// them the client gets an error, which also answers an unanswered join, and
// then left. No frame of the room follows.
func (c *Client) Restrict(allowed func(message.Room) bool) {
	c.mu.Lock()
	var gone []*member
	kept := c.rooms[:0]
	for _, m := range c.rooms {
		if allowed(m.topic.room) {
			kept = append(kept, m)
		} else {
			gone = append(gone, m)
		}
	}
	clear(c.rooms[len(kept):])
	c.rooms = kept
	c.mu.Unlock()
	for _, m := range gone {
		m.retire(new(protocol.Ref), errAccessRevoked, message.PresenceLeft)
	}
}
