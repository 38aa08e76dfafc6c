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
	server  *Server
	ws      *websocket.Conn
	conn    *conn // safe for concurrent use
	client  *hub.Client
	held    *held  // nil where the service keeps no sessions
	id      string // the handshake's request id
	remote  string
	started time.Time

	place    *place
	who      auth.Identity  // once introduced
	offer    protocol.Offer // until then
	deadline deadline       // guarded by the expiry's lock
	// introduced says that it is known who this is: only then are there a
	// client and a session.
	introduced atomic.Bool

	received  int
	deep      bool // the goroutine's stack has grown
	malformed int  // in a row
	spent     spending

	arrived bool // it has told how its move went

	busy atomic.Bool // a frame is being handled; the beat asks
	// begun is the tick at which the frame began that is being read, 0 for none.
	begun atomic.Int64
	told  atomic.Int64 // when it was asked to move, Unix ms; 0: it was not

	slot, index int // guarded by the beat's slot lock
}

func newSocket(s *Server, ws *websocket.Conn, c *conn, r *http.Request, p *place) *socket {
	from := callerOf(r)
	k := &socket{server: s, ws: ws, conn: c, id: from.id, remote: from.addr.String(), started: time.Now(), place: p}
	return k
}

// readLoop handles frames until the connection ends. It waits without a
// deadline: the heartbeat ends who is silent.
func (k *socket) readLoop() {
	k.rejoin()
	k.readOnLoop()
}

// readOnLoop is readLoop once it is under way. A join, the deepest that a
// client who then only listens goes, leaves a stack behind that an idle
// connection has no use for: a fresh goroutine takes over.
func (k *socket) readOnLoop() {
	var err error
	for err == nil {
		if err = k.readFrame(); k.deep && err == nil {
			k.deep = false
			go k.readOnLoop()
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
	k.begun.Store(max(1, k.server.clock.Load()))
	if err := readAll(r, buf); err != nil {
		return err
	}
	k.begun.Store(0)
	if !utf8.Valid(*buf) {
		// RFC 6455 §8.1; the library leaves it to us.
		k.conn.CloseWith(protocol.CloseUTF8)
		return errClosedByUs
	}
	if code, ours := k.conn.closing(); code != 0 && ours {
		return errClosedByUs // what comes after our close is not done
	}
	// A reader that waits for the log hears nothing meanwhile: that is no
	// silence of the client's.
	k.busy.Store(true)
	defer func() {
		k.conn.seen.Store(k.server.clock.Load())
		k.busy.Store(false)
	}()
	return k.handle(*buf)
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

// handle does what a frame asks for and answers what is wrong with it.
func (k *socket) handle(frame []byte) error {
	k.received++
	r, err := protocol.Decode(frame)
	if protocol.Malformed(err) {
		k.server.metrics.received.WithLabelValues("other").Inc()
		k.malformed++
		k.answer(&r, err)
		if k.malformed >= maxMalformed {
			k.conn.CloseWith(protocol.ClosePolicy)
			return errClosedByUs
		}
		return nil
	}
	k.malformed = 0
	k.server.countReceived(r.Type)
	if err := k.afford(&r, len(frame)); err != nil {
		k.answer(&r, err)
		if k.overdone() {
			k.conn.CloseWith(protocol.CloseRateLimited)
			return errClosedByUs
		}
		return nil
	}
	if err != nil {
		k.answer(&r, err)
		return nil
	}
	if r.Type == protocol.TypeAuth {
		return k.doAuth(&r)
	}
	if !k.introduced.Load() {
		k.answer(&r, errNoToken)
		return nil
	}
	k.do(&r)
	return nil
}

// do does what a checked request asks for.
func (k *socket) do(r *protocol.Request) {
	err := k.permit(r)
	switch {
	case err != nil:
	case r.Type == protocol.TypeMoved:
		// Only of a session that another node had, and once: else any stranger could
		// slow another node's drain down.
		if !k.arrived && (k.held == nil || k.held.came) {
			k.server.arrivals.note(time.Now(), time.Duration(r.HandshakeMS)*time.Millisecond)
		}
		k.arrived = true
	default:
		err = k.client.Handle(context.Background(), r)
	}
	if err != nil {
		k.answer(r, err)
	}
	k.deep = k.deep || r.Type == protocol.TypeJoin
	if k.held != nil && k.held.rooms && (r.Type == protocol.TypeJoin || r.Type == protocol.TypeLeave) {
		k.server.saver.soon(k)
	}
}

// doAuth does what an auth frame asks for.
func (k *socket) doAuth(r *protocol.Request) error {
	ends, err := k.authenticate(r)
	if err != nil {
		k.answer(r, err)
	}
	if ends {
		return errClosedByUs
	}
	k.rejoin() // the rooms of a session whose owner came in by this frame
	return nil
}

func (k *socket) answer(r *protocol.Request, err error) {
	e := protocol.ErrorFor(err)
	k.server.cfg.Hub.CountError(e.Code)
	if e.Code == protocol.CodeInternal {
		k.server.log.Error("request failed", "type", r.Type, "request_id", k.id, "error", err)
	}
	if event := refusals[e.Code]; event != "" {
		k.server.audit.note(&auditLine{
			Event: event, Who: k.who.User, From: k.remote, What: string(r.Type) + " " + string(r.Room), Why: e.Message, RequestID: k.id,
		})
	}
	k.conn.Send(e.Encode(r.Ref, r.Room, r.ID))
}

// end takes the client out of everything and closes the connection.
func (k *socket) end(err error) {
	s := k.server
	_, ours := k.conn.closing()
	goodbye := !ours && websocket.CloseStatus(err) == websocket.StatusNormalClosure
	moves := k.moves()
	k.part(goodbye)
	if k.client != nil {
		k.client.Close(goodbye && !moves)
	}
	s.expiry.remove(k)
	s.owners.remove(k)
	s.beat.remove(k)
	if k.violated(err) {
		// The library gives up on some frames without a word (an unmasked one).
		k.conn.CloseWith(protocol.CloseProtocol)
	}
	code, reason := k.verdict(err)
	if _, ours := k.conn.closing(); ours {
		k.awaitClose()
	}
	_ = k.ws.CloseNow() // flushes and lingers as conn.Close says, then closes
	s.metrics.active.Dec()
	s.metrics.disconnections.WithLabelValues(reason).Inc()
	if code != protocol.CloseNormal && code != protocol.CloseRestart && reason != reasonClient && reason != reasonLost {
		s.cfg.Hub.CountError(reason)
	}
	if k.told.Load() != 0 || code == protocol.CloseRestart {
		s.noteMove(code, reason)
	}
	took := time.Since(k.started)
	s.metrics.lifetime.Observe(took.Seconds())
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "connection ended",
		slog.Int("code", int(code)), slog.String("reason", reason), slog.String("remote", k.remote), slog.String("request_id", k.id),
		slog.Duration("duration", took), slog.Int("frames_in", k.received), slog.Int64("bytes_out", k.conn.sent.Load()))
	k.place.leave(k)
}

// violated says whether a read failed for what the client sent, and nobody has
// told it yet.
func (k *socket) violated(err error) bool {
	var network net.Error
	code, _ := k.conn.closing()
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

// codeLost stands for nobody having said anything (RFC 6455 §7.4.1).
const codeLost protocol.CloseCode = 1006

// verdict says why a connection ended. The code is what the client was told,
// or told us.
func (k *socket) verdict(err error) (protocol.CloseCode, string) {
	code, ours := k.conn.closing()
	if ours {
		return code, code.Reason()
	}
	if status := websocket.CloseStatus(err); status != -1 {
		return protocol.CloseCode(status), reasonClient
	}
	if code != 0 {
		return code, code.Reason()
	}
	return codeLost, reasonLost
}
