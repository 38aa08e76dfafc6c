package client

import "switchyard/internal/message"

// A Frame is a frame about a room's order as it arrived, before the client drops
// duplicates and requests what is missing. Fields that the type lacks are zero.
type Frame struct {
	// Connection is the number of the connection, in the order in which the
	// client opened them. Two are open during a move.
	Connection uint64
	Type       string // joined, left, message, gap or ack
	Room       message.Room
	Epoch      message.Epoch
	Seq        message.Seq // in joined, the room's head
	To         message.Seq // in gap, its last seq
	ID         string      // in message and ack
}

// observeFrame passes a frame about a room's order to Options.OnFrame. The caller
// holds handlerMu.
func (c *Client) observeFrame(conn *connection, f *serverFrame) {
	if c.opts.OnFrame == nil {
		return
	}
	switch f.Type {
	case "joined", "left", "message", "gap", "ack":
		c.opts.OnFrame(Frame{
			Connection: conn.number, Type: f.Type, Room: f.Room, Epoch: f.Epoch, Seq: f.Seq, To: f.To, ID: f.ID,
		})
	}
}
