package client

import "switchyard/internal/message"

// A Frame is a frame about a room's order as it came, before the client put
// anything right: dropped a double, asked again for what was skipped. What the
// type does not have is zero.
type Frame struct {
	// Connection numbers the client's connections in the order of opening; two
	// are open during a move.
	Connection uint64
	Type       string // joined, left, message, gap or ack
	Room       message.Room
	Epoch      message.Epoch
	Seq        message.Seq // of joined the room's head
	To         message.Seq // the end of a gap
	ID         string      // of a message or an ack
}

// observeFrame shows a frame to who wants to see for itself what the service does.
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
