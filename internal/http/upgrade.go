package http

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/protocol"
)

const (
	// smallBuffer is what the library reads and writes through, instead of the
	// 4+4 KiB of net/http: 512 bytes hold a usual frame.
	smallBuffer = 512
	// overLimit is how many connections over the limit are still accepted, to
	// be told so by a close code that a browser can see.
	overLimit = 256
)

// errTooFast turns a handshake away that came with too many others.
var errTooFast = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "too many handshakes a second; see MAX_HANDSHAKE_RATE",
	RetryAfter: time.Second,
}

// hijacker gives the library our conn when it takes the connection over.
// Where the library refuses the handshake instead, its answer is swallowed, for
// ours to take its place.
type hijacker struct {
	http.ResponseWriter
	server  *Server
	conn    *conn
	refused int // the library's status
}

// WriteHeader implements http.ResponseWriter.
func (h *hijacker) WriteHeader(status int) {
	if status == http.StatusSwitchingProtocols {
		h.ResponseWriter.WriteHeader(status)
		return
	}
	h.refused = status
}

// Write implements http.ResponseWriter. Only refusals have a body.
func (h *hijacker) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	under, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection can't be taken over")
	}
	c, old, err := under.Hijack()
	if err != nil {
		return nil, nil, err
	}
	// What the client sent behind its handshake is in net/http's buffer.
	carry, _ := old.Reader.Peek(old.Reader.Buffered())
	s := h.server
	h.conn = newConn(c, slices.Clone(carry), s.cfg.QueueBytes, &s.queued, &s.clock)
	return h.conn, bufio.NewReadWriter(
		bufio.NewReaderSize(h.conn, smallBuffer),
		bufio.NewWriterSize(h.conn, smallBuffer),
	), nil
}

// upgrade makes a WebSocket of a request. It returns at once: a goroutine with
// a shallow stack of its own reads, so that net/http's can go.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	if !s.origins.allow(r) {
		s.metrics.connections.WithLabelValues("origin").Inc()
		s.refuse(w, r, errOrigin)
		return
	}
	offer, err := protocol.ReadOffer(r)
	if err != nil {
		s.metrics.connections.WithLabelValues("handshake").Inc()
		s.refuse(w, r, err)
		return
	}
	if !s.gate.Allow() {
		s.metrics.connections.WithLabelValues("too_fast").Inc()
		s.refuse(w, r, errTooFast)
		return
	}
	n, ok := s.admit()
	if !ok {
		s.metrics.connections.WithLabelValues("refused").Inc()
		s.refuse(w, r, &protocol.Error{
			Code:       protocol.CodeUnavailable,
			Message:    "this node takes no new connections",
			RetryAfter: time.Second,
		})
		return
	}
	hj := &hijacker{ResponseWriter: w, server: s}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       []string{protocol.Subprotocol},
		InsecureSkipVerify: true, // the origin was checked above, scheme included
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		s.release()
		s.metrics.connections.WithLabelValues("handshake").Inc()
		if hj.refused != 0 {
			s.refuse(w, r, handshakeError(hj.refused))
		}
		return
	}
	ws.SetReadLimit(int64(s.cfg.MaxFrame))
	k := newSocket(s, ws, hj.conn, r)
	secret, resumed := k.hold(offer, "")
	result := "ok"
	if n > s.cfg.MaxConnections {
		result = "too_many"
	}
	s.metrics.connections.WithLabelValues(result).Inc()
	s.metrics.active.Inc()
	s.handshakes.count.Add(1)
	k.conn.Send(s.welcome(secret, resumed))
	if n > s.cfg.MaxConnections {
		k.conn.CloseWith(protocol.CloseTooMany)
	}
	s.beat.add(k)
	if s.closes() { // closeAll may have passed just before add
		k.conn.CloseWith(protocol.CloseRestart)
	}
	s.metrics.handshake.Observe(time.Since(started).Seconds())
	go k.readLoop()
}
