package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"nhooyr.io/websocket"

	"switchyard/internal/admission"
	"switchyard/internal/audit"
	"switchyard/internal/auth"
	"switchyard/internal/conn"
	"switchyard/internal/drain"
	"switchyard/internal/hub"
	"switchyard/internal/protocol"
	"switchyard/internal/session"
	"switchyard/internal/wheel"
)

// maxMalformed is how many malformed frames in a row close a connection.
const maxMalformed = 3

// A socket is one client's WebSocket. Its fields belong to readLoop unless their
// comments say otherwise.
type socket struct {
	server    *Server
	ws        *websocket.Conn
	conn      *conn.Conn // safe for concurrent use
	client    *hub.Client
	session   *session.Session // nil if no sessions are kept
	requestID string           // of the handshake
	remote    string
	network   netip.Prefix // by which the connection is counted; may be invalid
	reader    string       // by which reads are counted; "" for none
	started   time.Time

	admission *admission.Slot
	identity  auth.Identity      // valid once identified is set
	handshake protocol.Handshake // until then
	// identified means that identity, client and session are set. They do not
	// change after that, except for identity, which belongs to readLoop.
	identified atomic.Bool

	framesReceived int
	stackGrown     bool // the goroutine has a large stack
	malformedInRow int
	usage          rateUsage
	unpaced        int // frames that pace has not counted yet

	moveReported bool // the client has reported how long its move took

	handling atomic.Bool // a frame is being handled; read by the heartbeat and the drain
	// frameStartTick is the tick at which the frame that is being read began, 0 for
	// none.
	frameStartTick atomic.Int64
	// largeSince is when memory was reserved for the large frame that arrives or is being
	// handled, in nanoseconds since the connection began; 0 for none.
	largeSince  atomic.Int64
	moveRequest drain.MoveRequest // safe for concurrent use

	wheel.Deadline // of the token, or for the first one
	wheel.Place    // among the server's openSockets
}

func newSocket(s *Server, ws *websocket.Conn, c *conn.Conn, r *http.Request, slot *admission.Slot) *socket {
	from := callerOf(r)
	sock := &socket{
		server: s, ws: ws, conn: c, requestID: from.id, remote: from.Addr.String(), network: from.Network, reader: readerOf("", from.Network),
		started: time.Now(), admission: slot,
	}
	c.OnExtras(sock.pace)
	return sock
}

// MoveRequest implements drain.Client.
func (sock *socket) MoveRequest() *drain.MoveRequest { return &sock.moveRequest }

// Send implements drain.Client.
func (sock *socket) Send(f protocol.Frame) bool { return sock.conn.Send(f) }

// CloseWith implements drain.Client.
func (sock *socket) CloseWith(code protocol.CloseCode) bool { return sock.conn.CloseWith(code) }

// Abort implements drain.Client.
func (sock *socket) Abort() { sock.conn.Abort() }

// readLoop handles frames until the connection ends. It reads without a deadline:
// the heartbeat closes silent clients.
func (sock *socket) readLoop() {
	_ = sock.handle(sock.rejoin) // returns nil
	sock.readFramesLoop()
}

// readFramesLoop is the part of readLoop after rejoin. A join grows the stack more than
// anything else that a listening client does, and an idle connection should not keep
// that stack. So a fresh goroutine continues after a join.
func (sock *socket) readFramesLoop() {
	var err error
	for err == nil {
		if err = sock.readFrame(); sock.stackGrown && err == nil {
			sock.stackGrown = false
			go sock.readFramesLoop()
			return
		}
	}
	sock.end(err)
}

func (sock *socket) readFrame() error {
	// The library closes the connection when the context ends, so this one never
	// does.
	kind, r, err := sock.ws.Reader(context.Background())
	if err != nil {
		return err
	}
	if kind != websocket.MessageText {
		sock.conn.CloseWith(protocol.CloseBinary)
		return errClosedByUs
	}
	buf := conn.GetBuffer()
	defer conn.PutBuffer(buf)
	sock.frameStartTick.Store(max(1, sock.server.tick.Load()))
	large, err := readUpTo(r, buf, smallFrame)
	if err != nil {
		return err
	}
	if large {
		if err := sock.reserveFrame(); err != nil {
			sock.conn.CloseWith(protocol.CloseTooManyConnections)
			return errClosedByUs
		}
		defer sock.freeFrame()
		if _, err := readUpTo(r, buf, math.MaxInt); err != nil {
			return err
		}
	}
	sock.frameStartTick.Store(0)
	if !utf8.Valid(*buf) {
		// RFC 6455 §8.1; the library does not check it.
		sock.conn.CloseWith(protocol.CloseUTF8)
		return errClosedByUs
	}
	if code, ours := sock.conn.CloseStatus(); code != 0 && ours {
		return errClosedByUs // frames after our close frame are ignored
	}
	return sock.handle(func() error { return sock.handleFrame(*buf) })
}

// handle calls f, which may wait while nothing is read. The client does not count as silent
// meanwhile.
func (sock *socket) handle(f func() error) error {
	sock.handling.Store(true)
	defer func() {
		sock.conn.MarkRead()
		sock.handling.Store(false)
	}()
	return f()
}

var errClosedByUs = errors.New("closed by the service")

// readUpTo reads to the end, or until *buf has n bytes, into *buf; more reports whether
// the end is still to come. The library's read limit bounds what is read.
func readUpTo(r io.Reader, buf *[]byte, n int) (more bool, err error) {
	b := *buf
	defer func() { *buf = b }()
	for len(b) < n {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		read, err := r.Read(b[len(b):min(cap(b), n)])
		b = b[:len(b)+read]
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// handleFrame handles one frame, and answers errors. It returns an error if the
// connection is being closed.
func (sock *socket) handleFrame(frame []byte) error {
	sock.framesReceived++
	r, err := protocol.Decode(frame)
	counts := err != nil || rateKind(r.Type) != ratePublish
	defer func() {
		if counts {
			sock.pace(1 + len(frame)/frameUnit)
		}
	}()
	if protocol.IsMalformed(err) {
		sock.server.metrics.received.WithLabelValues("other").Inc()
		sock.malformedInRow++
		sock.sendError(&r, err)
		if sock.malformedInRow >= maxMalformed {
			sock.conn.CloseWith(protocol.ClosePolicy)
			return errClosedByUs
		}
		return nil
	}
	sock.malformedInRow = 0
	sock.server.metrics.countReceived(r.Type)
	if err := sock.checkRates(&r, len(frame)); err != nil {
		counts = true
		sock.sendError(&r, err)
		if sock.usage.ignoresRefusals() {
			sock.conn.CloseWith(protocol.CloseRateLimited)
			return errClosedByUs
		}
		return nil
	}
	if err != nil {
		sock.sendError(&r, err)
		return nil
	}
	if r.Type == protocol.TypeAuth {
		return sock.handleAuth(&r)
	}
	if !sock.identified.Load() {
		sock.sendError(&r, errNoToken)
		return nil
	}
	sock.dispatch(&r)
	return nil
}

// dispatch performs a valid request.
func (sock *socket) dispatch(r *protocol.Request) {
	err := permit(&sock.identity, r)
	switch {
	case err != nil:
	case r.Type == protocol.TypeMoved:
		// Only a session of another node counts, and only once. Otherwise any
		// client could slow the drain of another node. Without sessions every first
		// report counts: then no other node reads it.
		if !sock.moveReported && (sock.session == nil || sock.session.IsFromOtherNode()) {
			sock.server.moveLatencies.record(time.Now(), time.Duration(r.HandshakeMS)*time.Millisecond)
		}
		sock.moveReported = true
	case r.Type == protocol.TypePing:
		sock.conn.Send(protocol.Pong(r.Ref))
	default:
		err = sock.client.Handle(context.Background(), r)
	}
	if err != nil {
		sock.sendError(r, err)
	}
	sock.stackGrown = sock.stackGrown || r.Type == protocol.TypeJoin
	if r.Type == protocol.TypeJoin || r.Type == protocol.TypeLeave {
		sock.session.RoomsChanged()
	}
}

// handleAuth handles an auth frame.
func (sock *socket) handleAuth(r *protocol.Request) error {
	ends, err := sock.authenticate(r)
	if err != nil {
		sock.sendError(r, err)
	}
	if ends {
		return errClosedByUs
	}
	return sock.rejoin() // the rooms of a session that this frame resumed
}

func (sock *socket) sendError(r *protocol.Request, err error) {
	e := protocol.ErrorFor(err)
	kind := e.Code
	if errors.Is(err, errTooManyOfUser) {
		kind = protocol.CodeRateLimited // see errTooManyOfUser
	}
	sock.server.cfg.Hub.CountError(kind)
	if e.Code == protocol.CodeInternal {
		sock.server.respond.log.record(context.Background(), slog.LevelError, "request failed", "type", r.Type, "request_id", sock.requestID, "error", err)
	}
	if event := refusalEvents[kind]; event != "" {
		sock.server.audit.Record(&audit.Line{
			Event: event, Actor: sock.identity.User, From: sock.remote, Subject: string(r.Type) + " " + string(r.Room), Reason: e.Message, RequestID: sock.requestID,
		})
	}
	sock.conn.Send(e.Encode(r.Ref, r.Room, r.ID))
}
