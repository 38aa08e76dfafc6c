package hub

import (
	"encoding/binary"
	"errors"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A payload is what nodes send each other: a version, a kind, the sending
// node's boot id, the sender's clock, the epoch, and frames as (seq, length,
// whole frame). Numbers are big endian. A frame goes to sockets unchanged: no
// node encodes it again. A node that does not know the version drops the
// payload and reads the messages from the log, so the two colors of a deploy
// need not agree on it.
const (
	payloadVersion = 1
	payloadHeader  = 1 + 1 + 8 + 8 + 1
	frameHeader    = 8 + 4

	kindMessages = 'm'
	kindSignal   = 's'
)

// errPayload refuses bytes that are not a payload of this version.
var errPayload = errors.New("payload is of another version or truncated")

// A payload is a decoded broadcast. Its frames share memory with the bytes it
// was decoded from.
type payload struct {
	kind   byte
	origin uint64
	sentAt int64 // the sender's clock, Unix microseconds
	epoch  message.Epoch
	frames []roomFrame
}

// add appends a committed publication. Its frame is encoded here, once for all
// members.
func (p *payload) add(pub *message.Publication) {
	m := pub.Message()
	p.epoch = pub.Epoch
	p.frames = append(p.frames, roomFrame{
		seq:       pub.Seq,
		epoch:     pub.Epoch,
		frame:     protocol.Message(&m),
		createdAt: p.sentAt,
	})
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

// decodePayload decodes what encode returned without copying the frames, so b
// must not be changed afterwards. It returns an error for any other bytes and
// never panics.
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
			frame:     protocol.Frame(b[:size:size]), // an append does not reach the next frame
			createdAt: p.sentAt,
		})
		b = b[size:]
	}
	return p, nil
}
