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

// maxMalformed is how many unreadable frames in a row end a connection.
const maxMalformed = 3

// A socket is one client's connection. Its fields belong to readLoop unless
// they say otherwise.
type socket struct {
	server    *Server
	ws        *websocket.Conn
	conn      *conn // safe for concurrent use
	client    *hub.Client
	session   *sessionHandle // nil where the service keeps no sessions
	requestID string         // the handshake's request id
	remote    string
	started   time.Time

	admission *admissionSlot
	identity  auth.Identity      // once introduced
	offer     protocol.Handshake // until then
	deadline  deadline           // guarded by the expiry's lock
	// introduced says that it is known who this is: only then are there a
	// client and a session.
	identified atomic.Bool

	framesReceived int
	stackGrown     bool // the goroutine's stack has grown
	malformedInRow int  // in a row
	usage          rateUsage

	moveReported bool // it has told how its move went

	handling atomic.Bool // a frame is being handled; the beat asks
	// begun is the tick at which the frame began that is being read, 0 for none.
	frameStartTick atomic.Int64
	moveAskedAt    atomic.Int64 // when it was asked to move, Unix ms; 0: it was not

	heartbeatSlot, heartbeatIndex int // guarded by the beat's slot lock
}

func newSocket(s *Server, ws *websocket.Conn, c *conn, r *http.Request, p *admissionSlot) *socket {
	from := callerOf(r)
	k := &socket{server: s, ws: ws, conn: c, requestID: from.id, remote: from.addr.String(), started: time.Now(), admission: p}
	return k
}

// readLoop handles frames until the connection ends. It waits without a
// deadline: the heartbeat ends who is silent.
func (k *socket) readLoop() {
	k.rejoin()
	k.readFramesLoop()
}

// readFramesLoop is readLoop once it is under way. A join, the deepest that a
// client who then only listens goes, leaves a stack behind that an idle
// connection has no use for: a fresh goroutine takes over.
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
	// A context that ends would close the socket, so none does.
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
		// RFC 6455 §8.1; the library leaves it to us.
		k.conn.CloseWith(protocol.CloseUTF8)
		return errClosedByUs
	}
	if code, ours := k.conn.closeStatus(); code != 0 && ours {
		return errClosedByUs // what comes after our close is not done
	}
	// A reader that waits for the log hears nothing meanwhile: that is no
	// silence of the client's.
	k.handling.Store(true)
	defer func() {
		k.conn.lastReadTick.Store(k.server.tick.Load())
		k.handling.Store(false)
	}()
	return k.handleFrame(*buf)
}

var errClosedByUs = errors.New("closed by the service")

// readAll reads to the end into *buf, which the frame limit bounds.
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

// handleFrame does what a frame asks for and answers what is wrong with it.
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

// dispatch does what a checked request asks for.
func (k *socket) dispatch(r *protocol.Request) {
	err := k.permit(r)
	switch {
	case err != nil:
	case r.Type == protocol.TypeMoved:
		// Only of a session that another node had, and once: else any stranger could
		// slow another node's drain down.
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

// handleAuth does what an auth frame asks for.
func (k *socket) handleAuth(r *protocol.Request) error {
	ends, err := k.authenticate(r)
	if err != nil {
		k.sendError(r, err)
	}
	if ends {
		return errClosedByUs
	}
	k.rejoin() // the rooms of a session whose owner came in by this frame
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

// end takes the client out of everything and closes the connection.
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
		// The library gives up on some frames without a word (an unmasked one).
		k.conn.CloseWith(protocol.CloseProtocol)
	}
	code, reason := k.closeReason(err)
	if _, ours := k.conn.closeStatus(); ours {
		k.awaitClose()
	}
	_ = k.ws.CloseNow() // flushes and lingers as conn.Close says, then closes
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

// isProtocolError says whether a read failed for what the client sent, and nobody has
// told it yet.
func (k *socket) isProtocolError(err error) bool {
	var network net.Error
	code, _ := k.conn.closeStatus()
	return code == 0 && websocket.CloseStatus(err) == -1 && !errors.As(err, &network) &&
		!errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

// awaitClose reads until the client has answered our close frame: bounded by
// the deadline that went with it.
func (k *socket) awaitClose() {
	for {
		_, r, err := k.ws.Reader(context.Background())
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// Reasons of an end that no close frame of ours has.
const (
	reasonClient = "client" // the client said goodbye
	reasonLost   = "lost"   // no goodbye: cut, killed, or gone
)

// codeAbnormal stands for nobody having said anything (RFC 6455 §7.4.1).
const codeAbnormal protocol.CloseCode = 1006

// closeReason says why a connection ended. The code is what the client was told,
// or told us.
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
