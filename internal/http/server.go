// Package http speaks HTTP and WebSocket: the upgrade and the connections behind
// it, the server API, health, metrics and the page. It is imported as httpd. It
// speaks plain HTTP; TLS ends at the load balancer.
package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/admission"
	"switchyard/internal/audit"
	"switchyard/internal/auth"
	"switchyard/internal/drain"
	"switchyard/internal/hub"
	"switchyard/internal/ingress"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
	"switchyard/internal/session"
	"switchyard/internal/wheel"
)

// Config is what a server needs. Hub, Components, Verifier, Bans, Logger, LogLevel,
// Registerer and Gatherer are required.
type Config struct {
	Hub *hub.Hub
	// Components returns the state of each component. It must not block.
	Components func() []Component
	// Node, Color, Deployment and Version are the names of this process that
	// clients see.
	Node, Color, Deployment, Version string
	// AllowedOrigins are the origins of pages that may connect, beside the server's
	// own: scheme://host[:port], null, or https://*.example.com, where the star
	// matches one label. The host of an app's or extension's scheme may be absent or a
	// star.
	AllowedOrigins []string
	// AllowedHosts are the host names that the server accepts; a star matches one
	// label. None means any.
	AllowedHosts []string
	// TrustedProxies are the networks whose X-Forwarded headers count.
	TrustedProxies []netip.Prefix
	// Verifier checks tokens.
	Verifier Verifier
	// AuthTimeout is how long a connection may be open without a token, where one
	// is needed. 10 s by default.
	AuthTimeout time.Duration
	// AuthQueryToken also accepts a token in the query.
	AuthQueryToken bool
	// Open means that no key is configured, so that all clients are anonymous. The
	// page then shows a warning.
	Open bool
	// Bans keep users away.
	Bans Bans
	// APIKeys are the keys of the server API, by name.
	APIKeys map[string]string
	// MaxFrame bounds a frame from a client and the body of a server call, in
	// bytes. 64 KiB by default.
	MaxFrame int
	// QueueBytes bounds the send queue of one connection, in bytes. 1 MiB by
	// default.
	QueueBytes int
	// Memory bounds what waits for all clients together, and what arrives. The hub has the
	// same. 256 MiB by default.
	Memory *Memory
	// MaxConnections bounds the open WebSockets. 15,000 by default.
	MaxConnections int
	// Descriptors is how many descriptors connections may use. If they are not
	// enough for MaxConnections, fewer connections are accepted. 0 is no bound.
	Descriptors int
	// MaxHandshakeRate bounds the handshakes per second, so that many clients at
	// once do not overload a fresh node. The burst is as large. 500 by default.
	MaxHandshakeRate int
	// MaxPerUser bounds the connections of a user, MaxPerAddress those of an
	// address (an IPv6 /64 counts as one). 0 is no bound.
	MaxPerUser, MaxPerAddress int
	// MaxRooms is how many rooms a connection may be in, and therefore join at
	// once.
	MaxRooms int
	Rates    Rates
	// UserLimits limits what users publish on all nodes. Nil: no such limit.
	UserLimits UserLimits
	// IdleTimeout is how long a connection without a request stays open, 150 s by
	// default. It must be longer than proxies keep their idle connections.
	IdleTimeout time.Duration
	// Heartbeat is the period of heartbeats. A client that sends no byte for two
	// periods is closed. 25 s by default.
	Heartbeat time.Duration
	// DrainDelay is how long a draining node accepts handshakes, until the load
	// balancer has noticed; none by default. DrainWindow is the time over which
	// clients are asked to move, 10 s by default. DrainTimeout is the time from the
	// beginning of the drain until the remaining clients are closed, 25 s by
	// default.
	DrainDelay, DrainWindow, DrainTimeout time.Duration
	// MoveTargets describes the nodes that receive a draining node's clients,
	// without those that the scope excludes. It must not block. Nil: nothing is
	// known of other nodes.
	MoveTargets func(drain.Scope) drain.MoveTargets
	// Sessions and SessionEvents keep clients' sessions. Both are nil if no sessions
	// are kept.
	Sessions      session.Store
	SessionEvents session.Events
	// TakeoverTimeout is how long an older connection may stay open beside a newer one
	// of its session that does not become live in its rooms. 10 s by default.
	TakeoverTimeout time.Duration
	// IDWindow is how long the log remembers ids. Clients see it in their welcome.
	// 10 min by default.
	IDWindow time.Duration
	// Audit receives a line for each refusal, ban and drain. Nil: events are
	// only counted.
	Audit  io.Writer
	Logger *slog.Logger
	// LogLevel is the level that the admin listener changes.
	LogLevel   *slog.LevelVar
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer

	now          func() time.Duration // the clock of rate limits; tests have their own
	maxRejecting int                  // see admission.MaxRejecting; tests have their own
}

func (c *Config) defaults() {
	orInt := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	orInt(&c.MaxFrame, 64<<10)
	orInt(&c.QueueBytes, 1<<20)
	if c.Memory == nil {
		c.Memory = NewMemory(256 << 20)
	}
	orInt(&c.MaxConnections, 15000)
	orInt(&c.MaxHandshakeRate, 500)
	orInt(&c.maxRejecting, admission.MaxRejecting)
	if c.Heartbeat <= 0 {
		c.Heartbeat = 25 * time.Second
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 150 * time.Second
	}
	if c.IDWindow <= 0 {
		c.IDWindow = 10 * time.Minute
	}
	if c.DrainWindow <= 0 {
		c.DrainWindow = 10 * time.Second
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 25 * time.Second
	}
	if c.AuthTimeout <= 0 {
		c.AuthTimeout = 10 * time.Second
	}
	if c.TakeoverTimeout <= 0 {
		c.TakeoverTimeout = 10 * time.Second
	}
	if c.now == nil {
		start := time.Now()
		c.now = func() time.Duration { return time.Since(start) }
	}
}

// Bounds on plain HTTP.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 15 * time.Second // body read and answer written
	headerBytes    = 64 << 10         // as much as load balancers pass on; cookies of the site may need it
)

// A Server serves clients, backends, probes and operators. It is safe for
// concurrent use.
type Server struct {
	cfg       Config
	log       *slog.Logger
	metrics   *metrics
	admission *admission.Counter
	auth      *authenticator
	respond   *responder

	frameLimits [rateKinds]ratelimit.Limit
	allowances  *allowances
	expiry      *wheel.Deadlines[*socket] // of tokens
	audit       *audit.Log

	nextConnection atomic.Uint64 // numbers connections without a session
	memory         *Memory
	tick           atomic.Int64
	openSockets    wheel.Slots[*socket] // visited by heartbeatLoop
	public         *http.Server
	admin          *http.Server
	answers        httpAnswers
	userFrames     *ratelimit.Keyed // by user
	addressFrames  *ratelimit.Keyed // of anonymous users, by address
	stop           chan struct{}
	loops          sync.WaitGroup
	sessions       *session.Set
	// moveLatencies are those of clients that moved here.
	moveLatencies moveLatencies
	drain         *drain.Node
	// Counters since the start: handshakes that were accepted, the part of them
	// with a session of another node, and handshakes over MaxHandshakeRate.
	handshakes, handshakesMoved, handshakesRefused meter
}

// New returns a server whose background loops run. Shutdown stops them.
func New(cfg Config) *Server {
	cfg.defaults()
	shares := divide(cfg.Descriptors, cfg.MaxConnections, cfg.maxRejecting)
	s := &Server{
		cfg: cfg,
		log: cfg.Logger.With("component", "http"),
		admission: admission.NewCounter(admission.Limits{
			Connections: shares.webSockets, Rejecting: shares.rejecting, PerUser: cfg.MaxPerUser, PerAddress: cfg.MaxPerAddress,
		}),
		auth: &authenticator{
			verifier: cfg.Verifier, bans: cfg.Bans, failures: newFailureLimit(cfg.now),
			connects: ratelimit.NewKeyed(connectLimit(cfg.MaxHandshakeRate/50, cfg.MaxPerUser)),
			checks:   ratelimit.NewKeyed(connectLimit(cfg.MaxHandshakeRate/5, cfg.MaxPerAddress)), now: cfg.now,
			queryToken: cfg.AuthQueryToken,
		},
		frameLimits:   cfg.Rates.frameRates(cfg.MaxRooms),
		userFrames:    ratelimit.NewKeyed(FrameLimit(cfg.MaxPerUser, cfg.MaxConnections)),
		addressFrames: ratelimit.NewKeyed(FrameLimit(cfg.MaxPerAddress, cfg.MaxConnections)),
		stop:          make(chan struct{}),
		memory:        cfg.Memory,
	}
	s.allowances = newAllowances(s.frameLimits)
	s.metrics = newMetrics(cfg.Registerer, s.memory)
	s.metrics.connectionsLimit.Set(float64(shares.webSockets))
	if shares.webSockets < cfg.MaxConnections {
		s.log.Warn("the limit of open files (ulimit -n) allows fewer connections than MAX_CONNECTIONS; raise it or lower the setting",
			"max_connections", cfg.MaxConnections, "accepted", shares.webSockets)
	}
	s.audit = audit.New(cfg.Audit, cfg.Node, s.log, cfg.Registerer)
	s.drain = newDrain(s)
	s.sessions = newSessions(s)
	s.respond = &responder{log: newRefusalLog(s.log), metrics: s.metrics, audit: s.audit, late: newLateRefusals(cfg.now), isClosing: s.drain.IsClosing}
	g := &guard{respond: s.respond, hosts: ingress.NewHosts(cfg.AllowedHosts), proxies: cfg.TrustedProxies}
	s.public = s.newHTTPServer(s.routes(g))
	s.public.RegisterOnShutdown(s.respond.late.close)
	countConns(s.public, admission.NewHTTPConns(shares.plain, g.proxies.PeerNetwork, s.metrics.httpConnsRefused.Inc))
	s.admin = s.newHTTPServer((&adminAPI{server: s, respond: s.respond}).routes())
	s.admin.WriteTimeout = 0 // a CPU profile takes as long as its caller wants
	s.expiry = wheel.NewDeadlines[*socket](time.Now())
	s.loops.Go(func() { s.heartbeatLoop(cfg.Heartbeat) })
	s.loops.Go(s.expiryLoop)
	s.loops.Go(s.memoryLoop)
	s.loops.Go(func() { s.sessions.SaveLoop(s.stop) })
	return s
}

func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// OPTIONS * gets our headers and our problem document, as any unknown path
		// does.
		DisableGeneralOptionsHandler: true,
	}
}

// Serve accepts clients from a listener until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error { return s.serve(s.public, l) }

// ServeAdmin accepts operators from a listener, which belongs on loopback, until
// Shutdown.
func (s *Server) ServeAdmin(l net.Listener) error { return s.serve(s.admin, l) }

func (s *Server) serve(h *http.Server, l net.Listener) error {
	if err := h.Serve(newListener(l, s.log, s.metrics.acceptErrors, s.metrics.httpConnsRefused)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}

// Handler returns the public routes, for a server of the caller's own.
func (s *Server) Handler() http.Handler { return s.public.Handler }

// Stop makes the server unready and refuses handshakes from now on.
func (s *Server) Stop() { s.drain.Stop() }

// Shutdown stops both listeners, waits for running requests, and stops the
// background loops and the audit log. It does not wait for WebSockets: see
// DrainForShutdown.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Stop()
	err := errors.Join(s.public.Shutdown(ctx), s.admin.Shutdown(ctx))
	close(s.stop)
	ended := make(chan struct{})
	go func() {
		s.loops.Wait() // the session writer saves once more
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("sessions to be saved: %w", ctx.Err()))
	}
	return errors.Join(err, s.audit.Close(ctx))
}

// welcome returns the first frame to a client. If no sessions are kept, it contains
// a name that can't be resumed.
func (s *Server) welcome(secret string, resumed bool, identity *auth.Identity, limits *protocol.Limits) protocol.Frame {
	if secret == "" {
		secret = fmt.Sprintf("%s-%d", s.cfg.Node, s.nextConnection.Add(1))
	}
	var user *string
	if identity.User != "" {
		user = &identity.User
	}
	return protocol.Welcome{
		User:          user,
		AuthExpiresMS: untilExpiry(identity.Expires).Milliseconds(),
		Session:       secret,
		Resumed:       resumed,
		Node:          s.cfg.Node,
		Color:         s.cfg.Color,
		Deployment:    s.cfg.Deployment,
		Version:       s.cfg.Version,
		HeartbeatMS:   s.cfg.Heartbeat.Milliseconds(),
		MaxFrame:      s.cfg.MaxFrame,
		IDWindowMS:    s.cfg.IDWindow.Milliseconds(),
		Limits:        limits,
	}.Encode()
}
