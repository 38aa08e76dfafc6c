package http

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"nhooyr.io/websocket"

	"switchyard/internal/admission"
	"switchyard/internal/audit"
	"switchyard/internal/conn"
	"switchyard/internal/ingress"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// The buffers of the websocket library, instead of the 4+4 KiB of net/http. 512
// bytes hold a usual frame. The library writes only control frames, which are at
// most 127 bytes and must reach Conn.Write whole.
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

// errTooManyOfUser refuses a connection over MAX_CONNECTIONS_PER_USER. The wire calls it
// unavailable, as any limit of connections. It counts as the user's error: connections that
// a user opens again and again are no fault of the service.
var errTooManyOfUser = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "this user has too many connections; see MAX_CONNECTIONS_PER_USER",
	RetryAfter: time.Second,
}

// errHandshakeRate refuses a handshake over MAX_HANDSHAKE_RATE.
var errHandshakeRate = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "too many handshakes a second; see MAX_HANDSHAKE_RATE",
	RetryAfter: time.Second,
}

// errNoSubprotocol refuses a handshake that offers subprotocols and not ours. A browser
// would end the connection that the service has accepted, because none was selected.
var errNoSubprotocol = &protocol.Error{
	Code:    codeHandshake,
	Message: "Sec-WebSocket-Protocol has entries and not " + protocol.Subprotocol + ": offer it as well",
}

// A hijacker gives the websocket library our conn when it hijacks the connection.
// The answer to the handshake goes into conn's queue, so that it leaves in one
// packet with the first frame. If the library refuses the handshake, the hijacker
// discards its answer, and upgrade writes ours.
type hijacker struct {
	http.ResponseWriter
	server  *Server
	conn    *conn.Conn
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
	if g, ok := c.(*headerGuard); ok {
		c = g.Conn // there are no more headers
	}
	// Bytes that the client sent right after its handshake are in net/http's
	// buffer.
	preread, _ := old.Reader.Peek(old.Reader.Buffered())
	s := h.server
	frames, bytesRead := s.cfg.Rates.readLimits(s.cfg.MaxRooms)
	h.conn = conn.New(c, slices.Clone(preread), conn.Options{
		QueueBytes: s.cfg.QueueBytes, Budget: s.memory, Tick: &s.tick, Frames: frames, Bytes: bytesRead,
	})
	answer := bytes.NewBufferString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = h.Header().Write(answer) // never fails
	answer.WriteString("\r\n")
	h.conn.QueueHandshake(answer.Bytes())
	return h.conn, bufio.NewReadWriter(
		bufio.NewReaderSize(h.conn, readBuffer),
		bufio.NewWriterSize(h.conn, writeBuffer),
	), nil
}

// connectLimit returns how often a user or an address may connect: twice as often at once
// as it may have connections, so that all can move to this node two times in a row, and
// then perSecond. Where its connections are not limited, neither is this.
func connectLimit(perSecond, connections int) ratelimit.Limit {
	if connections <= 0 {
		return ratelimit.Limit{}
	}
	perSecond = max(1, perSecond)
	return ratelimit.Limit{PerSecond: perSecond, Burst: 2 * max(connections, perSecond)}
}

// An upgrader turns requests into WebSockets.
type upgrader struct {
	server   *Server
	respond  *responder
	origins  ingress.Origins
	limiter  *rate.Limiter    // of handshakes
	connects *ratelimit.Keyed // limits how often an address may connect
	// takesClients reports whether the drain lets a handshake in.
	takesClients func() bool
}

func newUpgrader(s *Server) *upgrader {
	return &upgrader{
		server: s, respond: s.respond, origins: ingress.NewOrigins(s.cfg.AllowedOrigins),
		limiter:      rate.NewLimiter(rate.Limit(s.cfg.MaxHandshakeRate), s.cfg.MaxHandshakeRate),
		connects:     ratelimit.NewKeyed(connectLimit(s.cfg.MaxHandshakeRate/10, s.cfg.MaxPerAddress)),
		takesClients: s.drain.TakesClients,
	}
}

// upgrade turns a request into a WebSocket, or refuses it. It returns at once: a
// new goroutine with a small stack reads, so that net/http's goroutine can end.
func (u *upgrader) upgrade(w http.ResponseWriter, r *http.Request) {
	s, started := u.server, time.Now()
	if from := &callerOf(r).Sender; !u.origins.Allow(r, from) {
		u.refuse(w, r, "origin", &detailedError{errOrigin, ingress.Compared(r, from)})
		return
	}
	handshake, err := s.auth.readHandshake(r)
	if err == nil && offersOnlyOthers(r) {
		err = errNoSubprotocol
	}
	if err != nil {
		u.refuse(w, r, "handshake", err)
		return
	}
	if result, err := u.checkRates(callerOf(r).Network); err != nil {
		u.refuse(w, r, result, err)
		return
	}
	slot := u.admit(callerOf(r))
	if slot == nil {
		u.refuse(w, r, "refused", errNoCapacity)
		return
	}
	client, err := s.auth.authenticateHandshake(r.Context(), callerOf(r).Network, handshake, slot)
	if err == nil && client.known && handshake.RejoinRooms && handshake.Session != "" {
		err = s.awaitFrames(r.Context(), client.identity.User, callerOf(r).Network)
	}
	if err != nil {
		slot.Release(nil)
		result := "refused"
		callerOf(r).user = client.identity.User
		switch {
		case errors.Is(err, errTooManyOfUser):
			result = resultTooManyOfUser
		case protocol.ErrorFor(err).Code == protocol.CodeRateLimited:
			result = resultRateLimited
		}
		u.refuse(w, r, result, err)
		return
	}
	sock := u.accept(w, r, slot)
	if sock == nil {
		slot.Release(nil)
		return
	}
	s.metrics.connections.WithLabelValues(slot.Result()).Inc()
	s.metrics.active.Inc()
	sock.handshake = handshake
	slot.Register(sock)
	u.serveSocket(sock, client)
	sock.conn.Flush() // the handshake's answer, if no frame has followed it
	s.openSockets.Add(sock)
	if s.drain.IsClosing() { // a drain may have closed all before sock was in openSockets
		sock.conn.CloseWith(protocol.CloseRestart)
	}
	s.metrics.handshake.Observe(time.Since(started).Seconds())
	go sock.readLoop()
}

// refuse counts and answers a handshake that is refused over HTTP.
func (u *upgrader) refuse(w http.ResponseWriter, r *http.Request, result string, err error) {
	u.server.metrics.connections.WithLabelValues(result).Inc()
	u.respond.refuse(w, r, err)
}

// checkRates counts a handshake of an address, or returns why the node takes none now.
func (u *upgrader) checkRates(network netip.Prefix) (result string, err error) {
	if network.IsValid() {
		if wait := u.connects.Take(network.String(), u.server.cfg.now(), 1); wait > 0 {
			return resultRateLimited, rateLimited("this address connects too often", wait)
		}
	}
	if !u.allow(network) {
		u.server.handshakesRefused.count.Add(1)
		return "too_fast", errHandshakeRate
	}
	if u.server.memory.IsSpent() {
		return "no_memory", errNoMemory
	}
	return "", nil
}

// allow counts a handshake of an address and returns true, unless there are too many. An
// address that has connected often lately leaves half of what is allowed at once to others.
func (u *upgrader) allow(network netip.Prefix) bool {
	half := u.server.cfg.MaxHandshakeRate / 2
	if network.IsValid() && u.connects.Used(network.String()).Events(u.connects.Limit(), u.server.cfg.now()) > half && u.limiter.Tokens() < float64(half) {
		return false
	}
	return u.limiter.Allow()
}

// offersOnlyOthers reports whether a handshake offers subprotocols, and not ours.
func offersOnlyOthers(r *http.Request) (others bool) {
	for offered := range strings.SplitSeq(strings.Join(r.Header.Values("Sec-WebSocket-Protocol"), ","), ",") {
		offered = strings.TrimSpace(offered)
		if strings.EqualFold(offered, protocol.Subprotocol) { // as the library compares
			return false
		}
		others = others || offered != ""
	}
	return others
}

// serveSocket identifies the client of a new connection, starts the timeout for its
// token, or closes it because it was rejected.
func (u *upgrader) serveSocket(sock *socket, client clientIdentity) {
	s := u.server
	if sock.admission.CloseCode() != 0 {
		u.auditRejection(sock, client.identity.User, client.rejection)
		sock.conn.CloseWith(sock.admission.CloseCode())
		return
	}
	s.handshakes.count.Add(1)
	if !client.known {
		s.expiry.Set(sock, time.Now().Add(s.cfg.AuthTimeout))
		return
	}
	sock.setIdentity(client.identity)
	if s.auth.banned(client.identity.User) { // the ban may have been set before Register
		sock.conn.CloseWith(protocol.CloseRemoved)
	}
}

// accept performs the upgrade. It returns nil if the handshake was refused and
// answered.
func (u *upgrader) accept(w http.ResponseWriter, r *http.Request, slot *admission.Slot) *socket {
	s := u.server
	hj := &hijacker{ResponseWriter: w, server: s}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       []string{protocol.Subprotocol},
		InsecureSkipVerify: true, // the origin was checked before, scheme included
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		s.metrics.connections.WithLabelValues("handshake").Inc()
		if hj.refused != 0 {
			u.respond.refuse(w, r, handshakeError(hj.refused))
		}
		return nil
	}
	ws.SetReadLimit(int64(s.cfg.MaxFrame))
	return newSocket(s, ws, hj.conn, r, slot)
}

// admit returns a slot for a new connection, or nil if its handshake must be refused. A
// slot is counted before takesClients is asked again: a drain or a stop that begins
// later finds it counted, and waits for it.
func (u *upgrader) admit(c *caller) *admission.Slot {
	if !u.takesClients() {
		return nil
	}
	slot := u.server.admission.Admit(c.Network)
	if slot != nil && !u.takesClients() {
		slot.Release(nil)
		return nil
	}
	return slot
}

// auditRejection records a connection that is closed right after its upgrade.
func (u *upgrader) auditRejection(sock *socket, user, why string) {
	event := audit.LimitReached
	switch sock.admission.CloseCode() {
	case protocol.CloseUnauthorized:
		event = audit.TokenRefused
	case protocol.CloseRemoved:
		event = audit.RightRefused
	}
	if why == "" {
		why = sock.admission.Result()
	}
	u.server.audit.Record(&audit.Line{Event: event, Actor: user, From: sock.remote, Subject: "GET /ws", Reason: why, RequestID: sock.requestID})
}
