package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
)

type phase uint8

const (
	connecting phase = iota
	upgrading
	open
	closed
)

// A conn is one WebSocket client.
type conn struct {
	engine         *engine
	id             int
	room           int // -1 for none
	publisherIndex int // among the publishers of its room
	publisher      bool

	fd             int
	phase          phase
	awaitsWritable bool // epoll reports when the socket is writable
	ready          bool
	closing        bool // by the driver: its end is not counted
	in             []byte
	out            []byte
	startedAt      int64

	seq      uint32   // of its last publish
	lastRef  uint32   // of its last request
	lastSeqs []uint32 // seq seen last, by publisher of the room
	pending  []int64  // when the requests without an answer went out
}

var (
	errEOF  = errors.New("closed by the server without a close frame")
	maskKey = [4]byte{0x91, 0x1c, 0xe7, 0x42}
)

func resolve(addr string) (syscall.SockaddrInet4, error) {
	var to syscall.SockaddrInet4
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return to, fmt.Errorf("address: %w", err)
	}
	to.Port = a.Port
	copy(to.Addr[:], a.IP.To4())
	return to, nil
}

// upgrade sends the handshake.
func (c *conn) upgrade(path, headers string) {
	c.phase = upgrading
	c.write([]byte("GET " + path + " HTTP/1.1\r\nHost: " + c.engine.host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3dpdGNoeWFyZC1iZW5jaA==\r\n" + headers + "\r\n"))
}

// sendText sends a text frame.
func (c *conn) sendText(p []byte) { c.sendFrame(1, p) }

func (c *conn) sendFrame(opcode byte, p []byte) {
	var buf [1 << 10]byte
	b := append(buf[:0], 0x80|opcode)
	switch n := len(p); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, maskKey[:]...)
	start := len(b)
	b = append(b, p...)
	for i := range p {
		b[start+i] ^= maskKey[i&3]
	}
	c.write(b)
}

// write sends bytes, and keeps those that the socket does not accept yet.
func (c *conn) write(b []byte) {
	if c.phase == closed {
		return
	}
	if len(c.out) > 0 {
		c.out = append(c.out, b...)
		return
	}
	n, err := sendNonblocking(c.fd, b)
	if err != nil {
		c.end(err)
		return
	}
	if n < len(b) {
		c.out = append(c.out, b[n:]...)
		c.notifyWritable(true)
	}
}

func sendNonblocking(fd int, b []byte) (int, error) {
	n, err := syscall.SendmsgN(fd, b, nil, nil, syscall.MSG_NOSIGNAL)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return 0, nil
	}
	return max(n, 0), err
}

// notifyWritable sets whether epoll reports when the socket is writable.
func (c *conn) notifyWritable(on bool) {
	if c.awaitsWritable == on {
		return
	}
	c.awaitsWritable = on
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP, Fd: int32(c.fd)}
	if on {
		ev.Events |= syscall.EPOLLOUT
	}
	_ = syscall.EpollCtl(c.engine.epoll, syscall.EPOLL_CTL_MOD, c.fd, &ev)
}

func (c *conn) writable() {
	if c.phase == connecting {
		if code, _ := syscall.GetsockoptInt(c.fd, syscall.SOL_SOCKET, syscall.SO_ERROR); code != 0 {
			c.end(syscall.Errno(code))
			return
		}
		c.notifyWritable(false)
		c.engine.onReady(c) // still in phase connecting: it sends its handshake now
		return
	}
	n, err := sendNonblocking(c.fd, c.out)
	if err != nil {
		c.end(err)
		return
	}
	c.out = c.out[:copy(c.out, c.out[n:])]
	if len(c.out) == 0 {
		c.out = nil
		c.notifyWritable(false)
	}
}

func (c *conn) readable() {
	for c.phase != closed {
		n, err := syscall.Read(c.fd, c.engine.buf)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			return
		}
		if err != nil {
			c.end(err)
			return
		}
		if n == 0 {
			c.end(errEOF)
			return
		}
		c.engine.now = clock()
		c.consume(c.engine.buf[:n])
		if n < len(c.engine.buf) {
			return
		}
	}
}

// consume handles the whole frames in b, and keeps the rest.
func (c *conn) consume(b []byte) {
	buffered := len(c.in) > 0
	if buffered {
		c.in = append(c.in, b...)
		b = c.in
	}
	used := 0
	for c.phase != closed {
		n := c.consumeFrame(b[used:])
		if n == 0 {
			break
		}
		used += n
	}
	switch rest := b[used:]; {
	case c.phase == closed || len(rest) == 0:
		c.in = nil
	case buffered:
		c.in = c.in[:copy(c.in, rest)]
	default:
		c.in = append([]byte(nil), rest...)
	}
}

// consumeFrame handles one frame, or the response to the handshake, and returns its
// length, or 0 if it is not whole.
func (c *conn) consumeFrame(b []byte) int {
	if c.phase == upgrading {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			return 0
		}
		if !bytes.HasPrefix(b, []byte("HTTP/1.1 101")) {
			line, _, _ := bytes.Cut(b, []byte("\r\n"))
			c.end(fmt.Errorf("upgrade refused: %s", line))
			return 0
		}
		c.phase = open
		c.engine.onReady(c)
		return end + 4
	}
	if len(b) < 2 {
		return 0
	}
	head, size := 2, uint64(b[1]&0x7f)
	switch {
	case size == 126 && len(b) >= 4:
		head, size = 4, uint64(binary.BigEndian.Uint16(b[2:]))
	case size == 127 && len(b) >= 10:
		head, size = 10, binary.BigEndian.Uint64(b[2:])
	case size >= 126:
		return 0
	}
	length := head + int(size)
	if len(b) < length {
		return 0
	}
	switch payload := b[head:length]; b[0] & 0xf {
	case 0x8:
		c.onCloseFrame(payload)
	case 0x9:
		c.sendFrame(0xA, payload)
	case 0xA:
	default:
		c.engine.onMessage(c, payload)
	}
	return length
}

// onCloseFrame handles a close frame.
func (c *conn) onCloseFrame(payload []byte) {
	if !c.closing {
		c.sendFrame(0x8, payload[:min(2, len(payload))])
	}
	code := 1005
	if len(payload) >= 2 {
		code, payload = int(binary.BigEndian.Uint16(payload)), payload[2:]
	}
	c.end(fmt.Errorf("closed with %d %s", code, payload))
}

// startClose sends a close frame; the connection ends with the server's answer.
func (c *conn) startClose() {
	c.closing = true
	c.sendFrame(0x8, []byte{0x03, 0xE8})
}

func (c *conn) end(err error) {
	if c.phase == closed {
		return
	}
	c.phase = closed
	if c.fd >= 0 {
		if c.fd < len(c.engine.conns) {
			c.engine.conns[c.fd] = nil
		}
		_ = syscall.Close(c.fd)
	}
	c.in, c.out, c.pending = nil, nil, nil
	c.engine.onEnd(c, err)
}
