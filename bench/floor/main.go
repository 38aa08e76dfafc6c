// Command floor is what the machine can do at least: one thread, one epoll,
// plain sockets, one send(2) a delivery, and nothing of a service around it.
// GET /in/N joins room N, /to/N only sends to it; a text frame goes to all who
// are in. With -together, all that one turn of the loop brought a room leaves in
// one send a member.
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

type peer struct {
	fd   int
	room string
	up   bool
	in   []byte
	out  []byte // what the socket did not take
}

type room struct {
	peers []*peer
	due   []byte
}

type server struct {
	epoll, listener int
	together        bool
	peers           map[int]*peer
	rooms           map[string]*room
	due             []*room
	buf             []byte
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8000", "where to listen")
	together := flag.Bool("together", false, "one send for what came together")
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
	s := &server{epoll: epoll, listener: listener, together: *together,
		peers: map[int]*peer{}, rooms: map[string]*room{}, buf: make([]byte, 64<<10)}
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
			if p := s.peers[fd]; p != nil {
				if ev.Events&syscall.EPOLLOUT != 0 {
					s.send(p, nil)
				}
				if ev.Events&^uint32(syscall.EPOLLOUT) != 0 {
					s.read(p)
				}
			}
		}
		for _, r := range s.due {
			for _, p := range r.peers {
				s.send(p, r.due)
			}
			r.due = r.due[:0]
		}
		s.due = s.due[:0]
	}
}

func (s *server) accept() {
	for {
		fd, _, err := syscall.Accept4(s.listener, syscall.SOCK_NONBLOCK)
		if err != nil {
			return
		}
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		s.peers[fd] = &peer{fd: fd}
		s.watch(fd, syscall.EPOLLIN|syscall.EPOLLRDHUP)
	}
}

func (s *server) read(p *peer) {
	n, err := syscall.Read(p.fd, s.buf)
	if errors.Is(err, syscall.EAGAIN) {
		return
	}
	if err != nil || n == 0 {
		s.drop(p)
		return
	}
	b := s.buf[:n]
	if len(p.in) > 0 {
		p.in = append(p.in, b...)
		b = p.in
	}
	if !p.up {
		if b = s.handshake(p, b); b == nil {
			return
		}
	}
	used := 0
	for s.peers[p.fd] == p {
		n := s.frame(p, b[used:])
		if n == 0 {
			break
		}
		used += n
	}
	if rest := b[used:]; len(rest) > 0 {
		p.in = append(p.in[:0], rest...)
	} else {
		p.in = nil
	}
}

// handshake answers the upgrade and returns what came behind it; nil: it is
// not whole.
func (s *server) handshake(p *peer, b []byte) []byte {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		p.in = append(p.in[:0], b...)
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
	p.up, p.room = true, path[min(len(path), len("/in/")):]
	r := s.rooms[p.room]
	if r == nil {
		r = &room{}
		s.rooms[p.room] = r
	}
	if strings.HasPrefix(path, "/in/") {
		r.peers = append(r.peers, p)
	}
	s.send(p, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n"))
	return b[end+4:]
}

// frame takes one masked frame and returns its length; 0: it is not whole.
func (s *server) frame(p *peer, b []byte) int {
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
	whole := head + 4 + size
	if len(b) < whole {
		return 0
	}
	mask, payload := b[head:head+4], b[head+4:whole]
	for i := range payload {
		payload[i] ^= mask[i&3]
	}
	if b[0]&0xf == 8 {
		s.drop(p)
		return whole
	}
	out := []byte{0x81, byte(size)}
	if size >= 126 {
		out = []byte{0x81, 126, byte(size >> 8), byte(size)}
	}
	out = append(out, payload...)
	r := s.rooms[p.room]
	if !s.together {
		for _, q := range r.peers {
			s.send(q, out)
		}
		return whole
	}
	if len(r.due) == 0 {
		s.due = append(s.due, r)
	}
	r.due = append(r.due, out...)
	return whole
}

// send writes, and keeps what the socket does not take.
func (s *server) send(p *peer, b []byte) {
	if waited := len(p.out) > 0; waited || len(b) == 0 {
		p.out = append(p.out, b...)
		b = p.out
		if !waited {
			return
		}
	}
	n, err := syscall.SendmsgN(p.fd, b, nil, nil, syscall.MSG_NOSIGNAL)
	if err != nil && !errors.Is(err, syscall.EAGAIN) {
		return // its read will tell
	}
	rest := b[max(n, 0):]
	events := uint32(syscall.EPOLLIN | syscall.EPOLLRDHUP)
	switch had := len(p.out) > 0; {
	case len(rest) > 0:
		p.out = append(p.out[:0], rest...)
		events |= syscall.EPOLLOUT
	case !had:
		return
	default:
		p.out = nil
	}
	_ = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_MOD, p.fd, &syscall.EpollEvent{Events: events, Fd: int32(p.fd)})
}

func (s *server) drop(p *peer) {
	delete(s.peers, p.fd)
	_ = syscall.Close(p.fd)
	r := s.rooms[p.room]
	if r == nil {
		return
	}
	for i, q := range r.peers {
		if q == p {
			r.peers[i] = r.peers[len(r.peers)-1]
			r.peers = r.peers[:len(r.peers)-1]
			return
		}
	}
}
