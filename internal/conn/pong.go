package conn

import "encoding/binary"

// A pongScanner finds the answers to our pings in what a client sends, because the
// websocket library does not report them. It follows frames (RFC 6455 §5.2) by
// their lengths alone, however the stream is cut, and reads pongs of eight bytes,
// the size of our counter. The library closes a connection that breaks the
// protocol; until then the scanner skips its bytes. The zero value is at the start
// of a frame. It belongs to the reader.
type pongScanner struct {
	// head holds the first have bytes of the present frame's header.
	head [14]byte
	have uint8
	left uint64 // payload bytes of the frame that were not read yet
	// frames counts the headers, extras those of control frames and fragments.
	frames, extras int
	body           [8]byte // of a pong of eight bytes
}

const (
	opcodeText   = 0x1
	opcodeBinary = 0x2
	opcodePong   = 0xA
	finalBit     = 0x80
	maskedBit    = 0x80
	pongBytes    = 8
)

// scan scans p and calls found with the counter of each pong that ends in it.
func (s *pongScanner) scan(p []byte, found func(uint64)) {
	for len(p) > 0 {
		if s.left == 0 {
			if s.head[s.have] = p[0]; !s.header() {
				p = p[1:]
				continue
			}
			p = p[1:]
			if s.left == 0 {
				s.have = 0 // a frame without payload
			}
			continue
		}
		n := min(uint64(len(p)), s.left)
		if s.isOurs() {
			copy(s.body[pongBytes-s.left:], p[:n])
		}
		p = p[n:]
		if s.left -= n; s.left > 0 {
			return
		}
		if s.isOurs() {
			found(s.counter())
		}
		s.have = 0
	}
}

// header processes the byte that was just stored, and reports whether the header is
// complete. Then left is the payload's length.
func (s *pongScanner) header() bool {
	s.have++
	if s.have < 2 {
		return false
	}
	size, want := uint64(s.head[1]&^maskedBit), uint8(2)
	switch size {
	case 126:
		want += 2
	case 127:
		want += 8
	}
	extended := want
	if s.head[1]&maskedBit != 0 {
		want += 4
	}
	if s.have < want {
		return false
	}
	switch extended {
	case 4:
		size = uint64(binary.BigEndian.Uint16(s.head[2:]))
	case 10:
		size = binary.BigEndian.Uint64(s.head[2:])
	}
	s.left = size
	s.frames++
	if s.head[0]&finalBit == 0 || s.head[0]&0xF != opcodeText && s.head[0]&0xF != opcodeBinary {
		s.extras++
	}
	return true
}

// isOurs reports whether the present frame is a masked pong of eight bytes.
func (s *pongScanner) isOurs() bool {
	return s.head[0]&0xF == opcodePong && s.head[1] == maskedBit|pongBytes
}

func (s *pongScanner) counter() uint64 {
	mask := s.head[2:6]
	b := s.body
	for i := range b {
		b[i] ^= mask[i%4]
	}
	return binary.BigEndian.Uint64(b[:])
}
