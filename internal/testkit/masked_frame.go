package testkit

import "encoding/binary"

// MaskedFrame returns a WebSocket frame of a client. The first byte has the opcode and
// the flag for the last fragment.
func MaskedFrame(first byte, payload string) string {
	size := len(payload)
	head := []byte{first, 0x80 | byte(size)}
	switch {
	case size > 65535:
		head = binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, uint64(size))
	case size > 125:
		head = binary.BigEndian.AppendUint16([]byte{first, 0x80 | 126}, uint16(size))
	}
	mask := [4]byte{0xA1, 0x5C, 0x00, 0xFF}
	body := []byte(payload)
	for i := range body {
		body[i] ^= mask[i%4]
	}
	return string(head) + string(mask[:]) + string(body)
}
