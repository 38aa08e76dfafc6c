package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// An engine is one thread, one epoll and one read buffer. Frames that arrive together
// share one read(2), so that the driver is cheaper than any server that it drives.
type engine struct {
	epoll   int
	addrs   []syscall.SockaddrInet4 // connections take turns
	host    string
	sources int
	dialed  int // connects so far, to spread them over the sources
	conns   []*conn
	buf     []byte
	events  [512]syscall.EpollEvent
	now     int64

	onReady   func(*conn)
	onMessage func(*conn, []byte)
	onEnd     func(*conn, error)
}

func newEngine(addr string, sources int) (*engine, error) {
	var to []syscall.SockaddrInet4
	for a := range strings.SplitSeq(addr, ",") {
		one, err := resolve(a)
		if err != nil {
			return nil, err
		}
		to = append(to, one)
	}
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &engine{epoll: epoll, addrs: to, host: "bench.test", sources: sources, buf: make([]byte, 256<<10)}, nil
}

const (
	bindNoPort  = 24  // IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect
	epollPwait2 = 441 // waits in nanoseconds
)

// dial begins a connection. onEnd is called if that fails.
func (e *engine) dial(c *conn) {
	c.engine, c.startedAt, c.phase = e, clock(), connecting
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	c.fd = fd
	if err != nil {
		c.end(err)
		return
	}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	if e.sources > 0 {
		e.dialed++
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, bindNoPort, 1)
		from := [4]byte{127, 1, byte(e.dialed % e.sources / 200), byte(e.dialed%e.sources%200 + 1)}
		if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: from}); err != nil {
			c.end(err)
			return
		}
	}
	for len(e.conns) <= fd {
		e.conns = append(e.conns, nil)
	}
	e.conns[fd] = c
	if err := syscall.Connect(fd, &e.addrs[c.id%len(e.addrs)]); err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		c.end(err)
		return
	}
	c.awaitsWritable = true
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP, Fd: int32(fd)}
	if err := syscall.EpollCtl(e.epoll, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		c.end(err)
	}
}

// run handles events until step returns done. step is called again at next, or earlier.
func (e *engine) run(step func(now int64) (next int64, done bool)) {
	for {
		e.now = clock()
		next, done := step(e.now)
		if done {
			return
		}
		for i := range e.wait(min(time.Duration(next-clock()), 20*time.Millisecond)) {
			ev := &e.events[i]
			c := e.conns[ev.Fd]
			if c == nil {
				continue
			}
			if ev.Events&syscall.EPOLLOUT != 0 {
				c.writable()
			}
			if c.phase != closed && ev.Events&^uint32(syscall.EPOLLOUT) != 0 {
				c.readable()
			}
		}
	}
}

func (e *engine) wait(d time.Duration) int {
	ts := syscall.NsecToTimespec(max(int64(d), 0))
	n, _, errno := syscall.Syscall6(epollPwait2, uintptr(e.epoll), uintptr(unsafe.Pointer(&e.events[0])),
		uintptr(len(e.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// clock returns the wall time in nanoseconds, which all processes of the machine share.
func clock() int64 { return time.Now().UnixNano() }
