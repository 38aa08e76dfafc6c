package hub

import (
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// errAccessRevoked tells who is taken out of a room; it goes before the left that
// nobody asked for.
var errAccessRevoked = &protocol.Error{Code: protocol.CodeForbidden, Message: "the new token does not open this room any more"}

// Restrict takes the client out of every room that it may not be in any more,
// and tells it of each: an error, as the answer to a join that is not done, and
// left. Nothing of those rooms follows.
func (c *Client) Restrict(may func(message.Room) bool) {
	c.mu.Lock()
	var gone []*member
	kept := c.rooms[:0]
	for _, m := range c.rooms {
		if may(m.topic.room) {
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
