// Package protocol is the bytes on the socket: wire v1 of docs/protocol.md, one
// JSON object a text frame, under the subprotocol switchyard.v1.
//
// Server frames are built here whole, WebSocket header included: a server does
// not mask (RFC 6455 §5.1), so one encoded frame serves every member of a room
// on every node, and nothing encodes it again.
package protocol

import "encoding/binary"

// Subprotocol is the name of this wire in Sec-WebSocket-Protocol.
const Subprotocol = "switchyard.v1"

// A Frame is one or more whole WebSocket frames as a server sends them. It is
// shared by many connections: nobody writes to it once it is made.
type Frame []byte

// Opcodes and bits of RFC 6455 §5.2.
const (
	final   = 0x80
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9

	// headroom is the longest header of an unmasked frame.
	headroom = 10
)

// IsClose says whether a frame begins a close handshake: nothing may follow it.
func IsClose(f []byte) bool { return len(f) > 0 && f[0] == final|opClose }

// PingFrame is a protocol ping that carries a counter, which comes back in the
// pong (RFC 6455 §5.5.3).
func PingFrame(counter uint64) Frame {
	return binary.BigEndian.AppendUint64(Frame{final | opPing, 8}, counter)
}

// newTextFrame starts a text frame with room for size bytes of payload.
func newTextFrame(size int) []byte { return make([]byte, headroom, headroom+size) }

// finishFrame writes the header of the text frame that b, made by newTextFrame, has become.
func finishFrame(b []byte) Frame {
	n := len(b) - headroom
	var at int
	switch {
	case n < 126:
		at = headroom - 2
		b[at+1] = byte(n)
	case n < 1<<16:
		at = headroom - 4
		b[at+1] = 126
		binary.BigEndian.PutUint16(b[at+2:], uint16(n))
	default:
		at = 0
		b[1] = 127
		binary.BigEndian.PutUint64(b[2:], uint64(n))
	}
	b[at] = final | opText
	return b[at:len(b):len(b)]
}

// Payload returns what a single text frame made here carries.
func Payload(f Frame) []byte {
	switch {
	case len(f) < 2:
		return nil
	case f[1] < 126:
		return f[2:]
	case f[1] == 126:
		return f[4:]
	}
	return f[headroom:]
}
