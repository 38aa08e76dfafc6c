// Package protocol is the bytes on the socket: wire v1 of docs/protocol.md, one
// JSON object per text frame, under the subprotocol switchyard.v1.
//
// The package builds whole server frames, WebSocket header included. A server
// does not mask (RFC 6455 §5.1), so one encoded frame serves every member of a
// room on every node, and nothing encodes it again.
package protocol

import "encoding/binary"

// Subprotocol is the name of this wire in Sec-WebSocket-Protocol.
const Subprotocol = "switchyard.v1"

// A Frame is one or more whole WebSocket frames as a server sends them. Many
// connections share it: it is never written to once it is made.
type Frame []byte

// Opcodes and bits of RFC 6455 §5.2.
const (
	final   = 0x80
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9

	// headroom is the longest header of an unmasked frame, in bytes.
	headroom = 10
)

// IsClose reports whether a frame begins a close handshake. No frame may follow
// it.
func IsClose(f []byte) bool { return len(f) > 0 && f[0] == final|opClose }

// PingFrame returns a protocol ping that carries a counter. The pong repeats
// the counter (RFC 6455 §5.5.3).
func PingFrame(counter uint64) Frame {
	return binary.BigEndian.AppendUint64(Frame{final | opPing, 8}, counter)
}

// newTextFrame returns a buffer for a text frame, with headroom for the header
// and capacity for size bytes of payload. Append the payload to it.
func newTextFrame(size int) []byte { return make([]byte, headroom, headroom+size) }

// finishFrame writes the header into the headroom of b, which begins as
// newTextFrame made it.
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

// Payload returns the payload of a single text frame that this package made.
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
