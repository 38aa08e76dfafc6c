package http

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/protocol"
)

// The buffers of the websocket library, instead of the 4+4 KiB of net/http. 512
// bytes hold a usual frame. The library writes only control frames, which are at
// most 127 bytes and must reach conn.Write whole.
const (
	readBuffer  = 512
	writeBuffer = 128
)

// errNoCapacity refuses a connection before its upgrade.
var errNoCapacity = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "this node takes no new connections",
	RetryAfter: time.Second,
}

// errHandshakeRate refuses a handshake over MAX_HANDSHAKE_RATE.
var errHandshakeRate = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "too many handshakes a second; see MAX_HANDSHAKE_RATE",
	RetryAfter: time.Second,
}

// A hijacker gives the websocket library our conn when it hijacks the connection.
// The answer to the handshake goes into conn's queue, so that it leaves in one
// packet with the first frame. If the library refuses the handshake, the hijacker
// discards its answer, and upgrade writes ours.
type hijacker struct {
	http.ResponseWriter
	server  *Server
	conn    *conn
	refused int // the library's status
}

// WriteHeader implements http.ResponseWriter. It keeps only the status of a
// refusal.
func (h *hijacker) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		h.refused = status
	}
}

// Write implements http.ResponseWriter. Only refusals have a body.
func (h *hijacker) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	inner, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection can't be hijacked")
	}
	c, old, err := inner.Hijack()
	if err != nil {
		return nil, nil, err
	}
	// Bytes that the client sent right after its handshake are in net/http's
	// buffer.
	preread, _ := old.Reader.Peek(old.Reader.Buffered())
	s := h.server
	h.conn = newConn(c, slices.Clone(preread), s.cfg.QueueBytes, &s.queuedBytes, &s.tick)
	h.conn.readThrottle = newThrottle(&s.cfg.Rates, s.cfg.MaxRooms, s.uptime)
	answer := bytes.NewBufferString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = h.Header().Write(answer) // never fails
	answer.WriteString("\r\n")
	h.conn.queueHandshake(answer.Bytes())
	return h.conn, bufio.NewReadWriter(
		bufio.NewReaderSize(h.conn, readBuffer),
		bufio.NewWriterSize(h.conn, writeBuffer),
	), nil
}

// upgrade turns a request into a WebSocket, or refuses it. It returns at once: a
// new goroutine with a small stack reads, so that net/http's goroutine can end.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	if !s.origins.allow(r) {
		s.metrics.connections.WithLabelValues("origin").Inc()
		s.refuse(w, r, errOrigin)
		return
	}
	handshake, err := s.readHandshake(r)
	if err != nil {
		s.metrics.connections.WithLabelValues("handshake").Inc()
		s.refuse(w, r, err)
		return
	}
	if !s.handshakeLimiter.Allow() {
		s.metrics.connections.WithLabelValues("too_fast").Inc()
		s.handshakesRefused.count.Add(1)
		s.refuse(w, r, errHandshakeRate)
		return
	}
	slot := s.admit(callerOf(r))
	if slot == nil {
		s.metrics.connections.WithLabelValues("refused").Inc()
		s.refuse(w, r, errNoCapacity)
		return
	}
	client, err := s.authenticateHandshake(r.Context(), handshake, slot)
	if err != nil {
		slot.release(nil)
		s.metrics.connections.WithLabelValues("refused").Inc()
		s.refuse(w, r, err)
		return
	}
	sock := s.accept(w, r, slot)
	if sock == nil {
		slot.release(nil)
		return
	}
	s.metrics.connections.WithLabelValues(slot.result).Inc()
	s.metrics.active.Inc()
	sock.handshake = handshake
	slot.register(sock)
	s.serveSocket(sock, client)
	sock.conn.Flush() // the handshake's answer, if no frame has followed it
	s.openSockets.add(sock)
	if s.drain.IsClosing() { // a drain may have closed all just before add
		sock.conn.CloseWith(protocol.CloseRestart)
	}
	s.metrics.handshake.Observe(time.Since(started).Seconds())
	go sock.readLoop()
}

// serveSocket identifies the client of a new connection, starts the timeout for its
// token, or closes it because it was rejected.
func (s *Server) serveSocket(sock *socket, client clientIdentity) {
	if sock.admission.closeCode != 0 {
		s.auditRejection(sock, client.identity.User, client.rejection)
		sock.conn.CloseWith(sock.admission.closeCode)
		return
	}
	s.handshakes.count.Add(1)
	if !client.known {
		s.expiry.set(sock, time.Now().Add(s.cfg.AuthTimeout))
		return
	}
	sock.setIdentity(client.identity)
	if s.banned(client.identity.User) { // the ban may have been set just before register
		sock.conn.CloseWith(protocol.CloseRemoved)
	}
}

// accept performs the upgrade. It returns nil if the handshake was refused and
// answered.
func (s *Server) accept(w http.ResponseWriter, r *http.Request, slot *admissionSlot) *socket {
	hj := &hijacker{ResponseWriter: w, server: s}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       []string{protocol.Subprotocol},
		InsecureSkipVerify: true, // the origin was checked before, scheme included
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		s.metrics.connections.WithLabelValues("handshake").Inc()
		if hj.refused != 0 {
			s.refuse(w, r, handshakeError(hj.refused))
		}
		return nil
	}
	ws.SetReadLimit(int64(s.cfg.MaxFrame))
	return newSocket(s, ws, hj.conn, r, slot)
}
