// Package http is everything that speaks HTTP or WebSocket: the upgrade and
// the sockets behind it, the server API, health, metrics and the page. It is
// imported as httpd. It speaks plain HTTP; TLSConfig ends at the load balancer.
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
	"golang.org/x/time/rate"

	"switchyard/internal/auth"
	"switchyard/internal/hub"
	"switchyard/internal/protocol"
)

// Config is what a server needs. Hub, Ready, Logger, LogLevel, Registerer and
// Gatherer are required.
type Config struct {
	Hub *hub.Hub
	// Components tells the state of each component; it must not block.
	Components func() []Component
	// Node, Color, Deployment and Version name this process to clients.
	Node, Color, Deployment, Version string
	// AllowedOrigins are scheme://host[:port] of pages that may connect, beside
	// the server's own; null; or https://*.example.com, a star for one label.
	AllowedOrigins []string
	// AllowedHosts are the names that the server answers to, a star for one
	// label; none: any.
	AllowedHosts []string
	// TrustedProxies are the networks whose X-Forwarded headers count.
	TrustedProxies []netip.Prefix
	// Verifier says who a token speaks for. Required.
	Verifier Verifier
	// AuthTimeout is how long a connection may be open before its token came,
	// where one is needed. 10 s by default.
	AuthTimeout time.Duration
	// AuthQueryToken also takes a token from the query.
	AuthQueryToken bool
	// Open says that no key is configured, so that nobody has a name and the
	// page says so.
	Open bool
	// Bans keep users out. Required.
	Bans Bans
	// APIKeys guard the server calls: name to key.
	APIKeys map[string]string
	// MaxFrame bounds a frame from a client and the body of a server call, in
	// bytes. 64 KiB by default.
	MaxFrame int
	// QueueBytes bounds what waits for one client to read. 1 MiB by default.
	QueueBytes int
	// MaxConnections bounds the open WebSockets. 15,000 by default.
	MaxConnections int
	// MaxHandshakeRate bounds the handshakes that are taken a second, so that a
	// herd does not melt a fresh node; as many may come at once. 500 by default.
	MaxHandshakeRate int
	// MaxPerUser bounds those of a user, MaxPerAddress those of an address (an
	// IPv6 /64 counts as one); 0 is no bound.
	MaxPerUser, MaxPerAddress int
	// MaxRooms is how many rooms a connection may be in, and so join at once.
	MaxRooms int
	Rates    Rates
	// UserLimits counts what users publish on all nodes. Nil: nobody does.
	UserLimits UserLimits
	// Heartbeat is the period of heartbeats; who sends no byte for two is
	// closed. 25 s by default.
	Heartbeat time.Duration
	// DrainDelay is how long a draining node takes handshakes, until the
	// balancer has noticed; none by default. DrainWindow is the time over which
	// its clients are asked to move, 10 s by default, and DrainTimeout when,
	// from the begin, the rest is closed: 25 s by default.
	DrainDelay, DrainWindow, DrainTimeout time.Duration
	// MoveTargets tells how the nodes do that take over a draining node's
	// clients, where those of the scope are to be avoided; it must not block.
	// Nil: nothing is known of them.
	MoveTargets func(Scope) MoveTargets
	// Sessions and Owners keep clients' sessions; nil, both: none are kept.
	Sessions  Sessions
	Takeovers Takeovers
	// TakeoverTimeout is how long an older socket may live beside a newer one of its
	// session that does not become live in its rooms. 10 s by default.
	TakeoverTimeout time.Duration
	// IDWindow is how long the log remembers ids, for clients to know. 10 min
	// by default.
	IDWindow time.Duration
	// Audit takes a line for each refusal, removal and drain. Nil: nobody does.
	Audit  io.Writer
	Logger *slog.Logger
	// LogLevel is the level that the admin listener changes.
	LogLevel   *slog.LevelVar
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer

	now          func() time.Duration // what rates are counted by; tests have their own
	maxRejecting int                  // see the constant; tests have their own
}

func (c *Config) defaults() {
	orInt := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	orInt(&c.MaxFrame, 64<<10)
	orInt(&c.QueueBytes, 1<<20)
	orInt(&c.MaxConnections, 15000)
	orInt(&c.MaxHandshakeRate, 500)
	orInt(&c.maxRejecting, maxRejecting)
	if c.Heartbeat <= 0 {
		c.Heartbeat = 25 * time.Second
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
	if c.MoveTargets == nil {
		c.MoveTargets = func(Scope) MoveTargets { return MoveTargets{} }
	}
}

// Bounds on plain HTTP.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 15 * time.Second // body read and answer written
	idleTimeout    = 75 * time.Second // over the balancer's usual 60
	headerBytes    = 16 << 10
)

// A Server serves clients, backends, probes and operators.
type Server struct {
	cfg       Config
	log       *slog.Logger
	metrics   *metrics
	apiKeys   []apiKey
	origins   origins
	hosts     hosts
	proxies   proxies
	httpConns *httpConnLimiter

	frameLimits   [rateKinds]rateLimit
	apiKeyLimiter *keyedLimiter // of API keys
	readLimiter   *keyedLimiter // of users, over HTTP
	expiry        expiryWheel
	audit         *auditor
	page          []byte

	started time.Time

	nextConnection   atomic.Uint64 // names connections in the welcome
	queuedBytes      atomic.Int64
	tick             atomic.Int64
	heartbeat        heartbeat
	public           *http.Server
	admin            *http.Server
	stop             chan struct{}
	loops            sync.WaitGroup
	handshakeLimiter *rate.Limiter // of handshakes
	sessionWriter    sessionWriter
	sessions         sessionIndex
	// arrivals are how long clients waited that were moved here.
	moveLatencies moveLatencies
	// handshakes counts those that were taken, came those of them whose session
	// was another node's, refused those that were too many, told the clients that
	// a drain asked to move, since the start.
	handshakes, handshakesMoved, handshakesRefused meter
	movesAsked                                     atomic.Int64

	mu sync.Mutex
	// Protects following.
	exiting   bool // the process ends once the drain is done
	stopping  bool
	drain     *drain // nil: none is under way
	admission admission
	empty     chan struct{} // closed when nobody is connected; nil: nobody waits
}

// New returns a server whose heartbeat runs; Serve makes it listen.
func New(cfg Config) *Server {
	cfg.defaults()
	s := &Server{
		cfg:           cfg,
		log:           cfg.Logger.With("component", "http"),
		apiKeys:       hashKeys(cfg.APIKeys),
		origins:       newOrigins(cfg.AllowedOrigins),
		hosts:         newHosts(cfg.AllowedHosts),
		proxies:       cfg.TrustedProxies,
		admission:     admission{networks: map[netip.Prefix]int{}, users: map[string]*userConnections{}},
		frameLimits:   cfg.Rates.frameRates(cfg.MaxRooms),
		apiKeyLimiter: newKeyedLimiter(perSecond(cfg.Rates.API)),
		readLimiter:   newKeyedLimiter(perSecond(cfg.Rates.History)),
		page:          page(cfg.Open),
		started:       time.Now(),
		stop:          make(chan struct{}),
	}
	s.httpConns = newHTTPConnLimiter(s)
	s.metrics = newMetrics(cfg.Registerer, func() float64 { return float64(s.queuedBytes.Load()) })
	s.audit = newAuditor(cfg.Audit, cfg.Node, s.log, &s.metrics.auditMetrics)
	s.heartbeat.server, s.sessionWriter.server = s, s
	s.sessionWriter.wake = make(chan struct{}, 1)
	s.handshakeLimiter = rate.NewLimiter(rate.Limit(cfg.MaxHandshakeRate), cfg.MaxHandshakeRate)
	s.public = s.newHTTPServer(s.routes())
	s.public.ConnState = s.httpConns.onStateChange
	s.admin = s.newHTTPServer(s.adminRoutes())
	s.admin.WriteTimeout = 0 // a CPU profile takes as long as it is asked to
	s.expiry.start = s.started
	s.loops.Go(func() { s.heartbeat.loop(cfg.Heartbeat, s.stop) })
	s.loops.Go(func() { s.expiry.loop(s.stop) })
	if cfg.Sessions != nil {
		s.loops.Go(func() { s.sessionWriter.loop(s.stop) })
	}
	return s
}

func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Every answer is ours: OPTIONS * gets the headers and the problem that
		// any other path that is not there gets.
		DisableGeneralOptionsHandler: true,
	}
}

// Serve takes connections from a listener until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error { return serve(s.public, l) }

// ServeAdmin does the same for operators: it belongs on loopback.
func (s *Server) ServeAdmin(l net.Listener) error { return serve(s.admin, l) }

func serve(h *http.Server, l net.Listener) error {
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}

// uptime is a clock that never stands or jumps.
func (s *Server) uptime() time.Duration { return time.Since(s.started) }

// Handler returns the public routes, for a server of the caller's own.
func (s *Server) Handler() http.Handler { return s.public.Handler }

// Stop makes the server unready: no handshake is taken from now on.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// CloseSockets stops the server, tells every client to come back to another
// node (1012), and waits for them to be gone or for ctx to end.
func (s *Server) CloseSockets(ctx context.Context) error {
	s.Stop()
	if !s.closeAll(ctx) {
		s.heartbeat.each(func(k *socket) { k.conn.abort() })
		return fmt.Errorf("clients that did not answer the close: %w", ctx.Err())
	}
	return nil
}

// Shutdown ends both listeners and what they have under way, then the
// heartbeat. Sockets are not waited for: see CloseSockets.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Stop()
	err := errors.Join(s.public.Shutdown(ctx), s.admin.Shutdown(ctx))
	close(s.stop)
	ended := make(chan struct{})
	go func() {
		s.loops.Wait() // the saver's last round
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("sessions to be saved: %w", ctx.Err()))
	}
	return errors.Join(err, s.audit.close(ctx))
}

// isClosing says whether a connection that comes now has come too late.
func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	phase := s.drain.currentPhase()
	return s.stopping || phase == phaseClosing || phase == phaseDrained
}

// connectionCount returns how many connections there are.
func (s *Server) connectionCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admission.connected
}

// emptied returns a channel that is closed once there is no connection.
func (s *Server) emptied() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.notifyEmpty()
	return empty
}

// notifyEmpty tells who waits for the last connection to go. Caller holds mu.
func (s *Server) notifyEmpty() {
	if s.admission.connected == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// welcome greets a client. Where no sessions are kept, what it is told is a
// name that nobody can resume.
func (s *Server) welcome(secret string, resumed bool, identity *auth.Identity) protocol.Frame {
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
	}.Encode()
}

// countReceived keeps the label to the types there are.
func (s *Server) countReceived(t protocol.Type) {
	switch t {
	case protocol.TypeJoin, protocol.TypeLeave, protocol.TypePublish, protocol.TypeSignal, protocol.TypeHistory,
		protocol.TypePresence, protocol.TypeAuth, protocol.TypeMoved:
		s.metrics.received.WithLabelValues(string(t)).Inc()
	default:
		s.metrics.received.WithLabelValues("other").Inc()
	}
}
