package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"nhooyr.io/websocket"

	"switchyard/internal/auth"
	"switchyard/internal/hub"
	"switchyard/internal/protocol"
)

// maxMalformed is how many malformed frames in a row close a connection.
const maxMalformed = 3

// A socket is one client's WebSocket. Its fields belong to readLoop unless their
// comments say otherwise.
type socket struct {
	server    *Server
	ws        *websocket.Conn
	conn      *conn // safe for concurrent use
	client    *hub.Client
	session   *sessionHandle // nil if no sessions are kept
	requestID string         // of the handshake
	remote    string
	started   time.Time

	admission *admissionSlot
	identity  auth.Identity      // valid once identified is set
	offer     protocol.Handshake // until then
	deadline  deadline           // guarded by the expiry wheel's lock
	// identified means that identity, client and session are set. They do not
	// change after that, except for identity, which belongs to readLoop.
	identified atomic.Bool

	framesReceived int
	stackGrown     bool // the goroutine has a large stack
	malformedInRow int
	usage          rateUsage

	moveReported bool // the client has reported how long its move took

	handling atomic.Bool // a frame is being handled; read by the heartbeat
	// frameStartTick is the tick at which the frame that is being read began, 0 for
	// none.
	frameStartTick atomic.Int64
	moveAskedAt    atomic.Int64 // when the client was asked to move, Unix ms; 0: not asked

	heartbeatSlot, heartbeatIndex int // guarded by the lock of the heartbeat's slot
}

func newSocket(s *Server, ws *websocket.Conn, c *conn, r *http.Request, p *admissionSlot) *socket {
	from := callerOf(r)
	k := &socket{server: s, ws: ws, conn: c, requestID: from.id, remote: from.addr.String(), started: time.Now(), admission: p}
	return k
}

// readLoop handles frames until the connection ends. It reads without a deadline:
// the heartbeat closes silent clients.
func (k *socket) readLoop() {
	k.rejoin()
	k.readFramesLoop()
}

// readFramesLoop is the part of readLoop after rejoin. A join has the deepest stack
// of what a listening client does, and an idle connection should not keep that
// stack. So a fresh goroutine continues after a join.
func (k *socket) readFramesLoop() {
	var err error
	for err == nil {
		if err = k.readFrame(); k.stackGrown && err == nil {
			k.stackGrown = false
			go k.readFramesLoop()
			return
		}
	}
	k.end(err)
}

func (k *socket) readFrame() error {
	// The library closes the connection when the context ends, so this one never
	// does.
	kind, r, err := k.ws.Reader(context.Background())
	if err != nil {
		return err
	}
	if kind != websocket.MessageText {
		k.conn.CloseWith(protocol.CloseBinary)
		return errClosedByUs
	}
	buf := buffers.get()
	defer buffers.put(buf)
	k.frameStartTick.Store(max(1, k.server.tick.Load()))
	if err := readAll(r, buf); err != nil {
		return err
	}
	k.frameStartTick.Store(0)
	if !utf8.Valid(*buf) {
		// RFC 6455 §8.1; the library does not check it.
		k.conn.CloseWith(protocol.CloseUTF8)
		return errClosedByUs
	}
	if code, ours := k.conn.closeStatus(); code != 0 && ours {
		return errClosedByUs // frames after our close frame are ignored
	}
	// A reader that waits for the log reads nothing meanwhile. The client must not
	// count as silent.
	k.handling.Store(true)
	defer func() {
		k.conn.lastReadTick.Store(k.server.tick.Load())
		k.handling.Store(false)
	}()
	return k.handleFrame(*buf)
}

var errClosedByUs = errors.New("closed by the service")

// readAll reads to the end into *buf. The library's read limit bounds it.
func readAll(r io.Reader, buf *[]byte) error {
	b := *buf
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*buf = b
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// handleFrame handles one frame, and answers errors. It returns an error if the
// connection is being closed.
func (k *socket) handleFrame(frame []byte) error {
	k.framesReceived++
	r, err := protocol.Decode(frame)
	if protocol.IsMalformed(err) {
		k.server.metrics.received.WithLabelValues("other").Inc()
		k.malformedInRow++
		k.sendError(&r, err)
		if k.malformedInRow >= maxMalformed {
			k.conn.CloseWith(protocol.ClosePolicy)
			return errClosedByUs
		}
		return nil
	}
	k.malformedInRow = 0
	k.server.countReceived(r.Type)
	if err := k.checkRates(&r, len(frame)); err != nil {
		k.sendError(&r, err)
		if k.ignoresRefusals() {
			k.conn.CloseWith(protocol.CloseRateLimited)
			return errClosedByUs
		}
		return nil
	}
	if err != nil {
		k.sendError(&r, err)
		return nil
	}
	if r.Type == protocol.TypeAuth {
		return k.handleAuth(&r)
	}
	if !k.identified.Load() {
		k.sendError(&r, errNoToken)
		return nil
	}
	k.dispatch(&r)
	return nil
}

// dispatch performs a valid request.
func (k *socket) dispatch(r *protocol.Request) {
	err := k.permit(r)
	switch {
	case err != nil:
	case r.Type == protocol.TypeMoved:
		// Only a session of another node counts, and only once. Otherwise any
		// client could slow the drain of another node.
		if !k.moveReported && (k.session == nil || k.session.fromOtherNode) {
			k.server.moveLatencies.record(time.Now(), time.Duration(r.HandshakeMS)*time.Millisecond)
		}
		k.moveReported = true
	default:
		err = k.client.Handle(context.Background(), r)
	}
	if err != nil {
		k.sendError(r, err)
	}
	k.stackGrown = k.stackGrown || r.Type == protocol.TypeJoin
	if k.session != nil && k.session.managesRooms && (r.Type == protocol.TypeJoin || r.Type == protocol.TypeLeave) {
		k.server.sessionWriter.scheduleSoon(k)
	}
}

// handleAuth handles an auth frame.
func (k *socket) handleAuth(r *protocol.Request) error {
	ends, err := k.authenticate(r)
	if err != nil {
		k.sendError(r, err)
	}
	if ends {
		return errClosedByUs
	}
	k.rejoin() // the rooms of a session that this frame resumed
	return nil
}

func (k *socket) sendError(r *protocol.Request, err error) {
	e := protocol.ErrorFor(err)
	k.server.cfg.Hub.CountError(e.Code)
	if e.Code == protocol.CodeInternal {
		k.server.log.Error("request failed", "type", r.Type, "request_id", k.requestID, "error", err)
	}
	if event := refusalEvents[e.Code]; event != "" {
		k.server.audit.record(&auditLine{
			Event: event, Who: k.identity.User, From: k.remote, What: string(r.Type) + " " + string(r.Room), Why: e.Message, RequestID: k.requestID,
		})
	}
	k.conn.Send(e.Encode(r.Ref, r.Room, r.ID))
}

// end removes the client from everything and closes the connection.
func (k *socket) end(err error) {
	s := k.server
	_, ours := k.conn.closeStatus()
	goodbye := !ours && websocket.CloseStatus(err) == websocket.StatusNormalClosure
	moving := k.isMoving()
	k.detachSession(goodbye)
	if k.client != nil {
		k.client.Close(goodbye && !moving)
	}
	s.expiry.remove(k)
	s.sessions.remove(k)
	s.heartbeat.remove(k)
	if k.isProtocolError(err) {
		// The library ends on some frames without a close frame (an unmasked one).
		k.conn.CloseWith(protocol.CloseProtocol)
	}
	code, reason := k.closeReason(err)
	if _, ours := k.conn.closeStatus(); ours {
		k.awaitClose()
	}
	_ = k.ws.CloseNow() // flushes and lingers (see conn.Close), then closes
	s.metrics.active.Dec()
	s.metrics.disconnections.WithLabelValues(reason).Inc()
	if code != protocol.CloseNormal && code != protocol.CloseRestart && reason != reasonClient && reason != reasonLost {
		s.cfg.Hub.CountError(reason)
	}
	if k.moveAskedAt.Load() != 0 || code == protocol.CloseRestart {
		s.recordMove(code, reason)
	}
	took := time.Since(k.started)
	s.metrics.lifetime.Observe(took.Seconds())
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "connection ended",
		slog.Int("code", int(code)), slog.String("reason", reason), slog.String("remote", k.remote), slog.String("request_id", k.requestID),
		slog.Duration("duration", took), slog.Int("frames_in", k.framesReceived), slog.Int64("bytes_out", k.conn.sentBytes.Load()))
	k.admission.release(k)
}

// isProtocolError reports whether a read failed because of what the client sent,
// and no close frame has been sent.
func (k *socket) isProtocolError(err error) bool {
	var network net.Error
	code, _ := k.conn.closeStatus()
	return code == 0 && websocket.CloseStatus(err) == -1 && !errors.As(err, &network) &&
		!errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

// awaitClose reads until the client has answered our close frame. The deadline of
// the close frame bounds it.
func (k *socket) awaitClose() {
	for {
		_, r, err := k.ws.Reader(context.Background())
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// The reasons of connections that the service did not close.
const (
	reasonClient = "client" // the client sent a close frame
	reasonLost   = "lost"   // no close frame: cut, killed, or gone
)

// codeAbnormal means that there was no close frame (RFC 6455 §7.4.1).
const codeAbnormal protocol.CloseCode = 1006

// closeReason returns why a connection ended. The code is the one that the client
// got or sent.
func (k *socket) closeReason(err error) (protocol.CloseCode, string) {
	code, ours := k.conn.closeStatus()
	if ours {
		return code, code.Reason()
	}
	if status := websocket.CloseStatus(err); status != -1 {
		return protocol.CloseCode(status), reasonClient
	}
	if code != 0 {
		return code, code.Reason()
	}
	return codeAbnormal, reasonLost
}
