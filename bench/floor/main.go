// Command floor shows what the machine can do: one thread, one epoll, plain sockets, one
// send(2) a delivery, and no service around it. GET /in/N joins room N, /to/N only sends
// to it; a text frame goes to all members. With -together, the frames of a room that came
// in one turn of the loop go to each member in one send.
package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"flag"
	"log"
	"net"
	"runtime"
	"strings"
	"syscall"
)

type client struct {
	fd       int
	room     string
	upgraded bool
	readBuf  []byte
	writeBuf []byte // not yet accepted by the socket
}

type room struct {
	members []*client
	pending []byte
}

type server struct {
	epoll, listener int
	coalesce        bool
	clients         map[int]*client
	rooms           map[string]*room
	dirtyRooms      []*room
	buf             []byte
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8000", "where to listen")
	together := flag.Bool("together", false, "one send for frames that came together")
	flag.Parse()
	runtime.LockOSThread()
	a, err := net.ResolveTCPAddr("tcp4", *addr)
	check(err)
	to := &syscall.SockaddrInet4{Port: a.Port}
	copy(to.Addr[:], a.IP.To4())
	listener, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	check(err)
	check(syscall.SetsockoptInt(listener, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	check(syscall.Bind(listener, to))
	check(syscall.Listen(listener, 1024))
	epoll, err := syscall.EpollCreate1(0)
	check(err)
	s := &server{epoll: epoll, listener: listener, coalesce: *together,
		clients: map[int]*client{}, rooms: map[string]*room{}, buf: make([]byte, 64<<10)}
	s.watch(listener, syscall.EPOLLIN)
	s.loop()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func (s *server) watch(fd int, events uint32) {
	check(syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: events, Fd: int32(fd)}))
}

func (s *server) loop() {
	events := make([]syscall.EpollEvent, 256)
	for {
		n, err := syscall.EpollWait(s.epoll, events, -1)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			log.Fatal(err)
		}
		for _, ev := range events[:max(n, 0)] {
			fd := int(ev.Fd)
			if fd == s.listener {
				s.accept()
				continue
			}
			if p := s.clients[fd]; p != nil {
				if ev.Events&syscall.EPOLLOUT != 0 {
					s.send(p, nil)
				}
				if ev.Events&^uint32(syscall.EPOLLOUT) != 0 {
					s.read(p)
				}
			}
		}
		for _, r := range s.dirtyRooms {
			for _, p := range r.members {
				s.send(p, r.pending)
			}
			r.pending = r.pending[:0]
		}
		s.dirtyRooms = s.dirtyRooms[:0]
	}
}

func (s *server) accept() {
	for {
		fd, _, err := syscall.Accept4(s.listener, syscall.SOCK_NONBLOCK)
		if err != nil {
			return
		}
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		s.clients[fd] = &client{fd: fd}
		s.watch(fd, syscall.EPOLLIN|syscall.EPOLLRDHUP)
	}
}

func (s *server) read(p *client) {
	n, err := syscall.Read(p.fd, s.buf)
	if errors.Is(err, syscall.EAGAIN) {
		return
	}
	if err != nil || n == 0 {
		s.closeClient(p)
		return
	}
	b := s.buf[:n]
	if len(p.readBuf) > 0 {
		p.readBuf = append(p.readBuf, b...)
		b = p.readBuf
	}
	if !p.upgraded {
		if b = s.handshake(p, b); b == nil {
			return
		}
	}
	used := 0
	for s.clients[p.fd] == p {
		n := s.frame(p, b[used:])
		if n == 0 {
			break
		}
		used += n
	}
	if rest := b[used:]; len(rest) > 0 {
		p.readBuf = append(p.readBuf[:0], rest...)
	} else {
		p.readBuf = nil
	}
}

// handshake answers the handshake and returns the bytes after it, nil if it is not whole.
func (s *server) handshake(p *client, b []byte) []byte {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		p.readBuf = append(p.readBuf[:0], b...)
		return nil
	}
	path, key := "", ""
	for i, line := range strings.Split(string(b[:end]), "\r\n") {
		if f := strings.Fields(line); i == 0 && len(f) > 1 {
			path = f[1]
		}
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Sec-WebSocket-Key") {
			key = strings.TrimSpace(value)
		}
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	p.upgraded, p.room = true, path[min(len(path), len("/in/")):]
	r := s.rooms[p.room]
	if r == nil {
		r = &room{}
		s.rooms[p.room] = r
	}
	if strings.HasPrefix(path, "/in/") {
		r.members = append(r.members, p)
	}
	s.send(p, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n"))
	return b[end+4:]
}

// frame handles one masked frame and returns its length, 0 if it is not whole.
func (s *server) frame(p *client, b []byte) int {
	if len(b) < 2 {
		return 0
	}
	head, size := 2, int(b[1]&0x7f)
	if size == 126 {
		if len(b) < 4 {
			return 0
		}
		head, size = 4, int(binary.BigEndian.Uint16(b[2:]))
	}
	length := head + 4 + size
	if len(b) < length {
		return 0
	}
	mask, payload := b[head:head+4], b[head+4:length]
	for i := range payload {
		payload[i] ^= mask[i&3]
	}
	if b[0]&0xf == 8 {
		s.closeClient(p)
		return length
	}
	out := []byte{0x81, byte(size)}
	if size >= 126 {
		out = []byte{0x81, 126, byte(size >> 8), byte(size)}
	}
	out = append(out, payload...)
	r := s.rooms[p.room]
	if !s.coalesce {
		for _, q := range r.members {
			s.send(q, out)
		}
		return length
	}
	if len(r.pending) == 0 {
		s.dirtyRooms = append(s.dirtyRooms, r)
	}
	r.pending = append(r.pending, out...)
	return length
}

// send writes bytes, and keeps those that the socket does not accept yet.
func (s *server) send(p *client, b []byte) {
	if hadPending := len(p.writeBuf) > 0; hadPending || len(b) == 0 {
		p.writeBuf = append(p.writeBuf, b...)
		b = p.writeBuf
		if !hadPending {
			return
		}
	}
	n, err := syscall.SendmsgN(p.fd, b, nil, nil, syscall.MSG_NOSIGNAL)
	if err != nil && !errors.Is(err, syscall.EAGAIN) {
		return // reading from it fails, too
	}
	rest := b[max(n, 0):]
	events := uint32(syscall.EPOLLIN | syscall.EPOLLRDHUP)
	switch wasPending := len(p.writeBuf) > 0; {
	case len(rest) > 0:
		p.writeBuf = append(p.writeBuf[:0], rest...)
		events |= syscall.EPOLLOUT
	case !wasPending:
		return
	default:
		p.writeBuf = nil
	}
	_ = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_MOD, p.fd, &syscall.EpollEvent{Events: events, Fd: int32(p.fd)})
}

func (s *server) closeClient(p *client) {
	delete(s.clients, p.fd)
	_ = syscall.Close(p.fd)
	r := s.rooms[p.room]
	if r == nil {
		return
	}
	for i, q := range r.members {
		if q == p {
			r.members[i] = r.members[len(r.members)-1]
			r.members = r.members[:len(r.members)-1]
			return
		}
	}
}
