package hub

import (
	"encoding/binary"
	"errors"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// What travels between nodes: a version, a kind, the sending node's boot id,
// the sender's clock, the epoch, and entries of (seq, length, whole frame). The
// frame goes to sockets as it is; a node never encodes what another one did.
// Numbers are big endian. A node that does not know the version drops the
// payload, and has the messages from the log: so the two colours of a deploy
// need not agree on it.
const (
	payloadVersion = 1
	payloadHeader  = 1 + 1 + 8 + 8 + 1
	frameHeader    = 8 + 4

	kindMessages = 'm'
	kindSignal   = 's'
)

var errPayload = errors.New("payload of another version, or cut")

// A payload is a decoded broadcast. Its frames share the memory it came in.
type payload struct {
	kind   byte
	origin uint64
	sentAt int64 // the sender's clock, Unix microseconds
	epoch  message.Epoch
	frames []roomFrame
}

// encode returns the bytes of p, in one allocation.
func (p *payload) encode() []byte {
	size := payloadHeader + len(p.epoch)
	for i := range p.frames {
		size += frameHeader + len(p.frames[i].frame)
	}
	b := make([]byte, 0, size)
	b = append(b, payloadVersion, p.kind)
	b = binary.BigEndian.AppendUint64(b, p.origin)
	b = binary.BigEndian.AppendUint64(b, uint64(p.sentAt))
	b = append(b, byte(len(p.epoch)))
	b = append(b, p.epoch...)
	for i := range p.frames {
		b = binary.BigEndian.AppendUint64(b, uint64(p.frames[i].seq))
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.frames[i].frame)))
		b = append(b, p.frames[i].frame...)
	}
	return b
}

// decodePayload reads what encode wrote, without copying frames: b is the
// payload's from then on. Bytes of any other origin give an error, never a panic.
func decodePayload(b []byte) (payload, error) {
	var p payload
	if len(b) < payloadHeader || b[0] != payloadVersion {
		return p, errPayload
	}
	p.kind = b[1]
	p.origin = binary.BigEndian.Uint64(b[2:])
	p.sentAt = int64(binary.BigEndian.Uint64(b[10:]))
	n := int(b[18])
	b = b[payloadHeader:]
	if len(b) < n || p.kind != kindMessages && p.kind != kindSignal {
		return p, errPayload
	}
	p.epoch = message.Epoch(b[:n])
	for b = b[n:]; len(b) > 0; {
		if len(b) < frameHeader {
			return p, errPayload
		}
		seq := message.Seq(binary.BigEndian.Uint64(b))
		size := int(binary.BigEndian.Uint32(b[8:]))
		b = b[frameHeader:]
		if size > len(b) || seq < 0 || (seq == 0) != (p.kind == kindSignal) {
			return p, errPayload
		}
		p.frames = append(p.frames, roomFrame{
			seq:       seq,
			epoch:     p.epoch,
			frame:     protocol.Frame(b[:size:size]), // no append reaches the next one
			createdAt: p.sentAt,
		})
		b = b[size:]
	}
	return p, nil
}
