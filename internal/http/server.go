// Package http is everything that speaks HTTP or WebSocket: the upgrade and
// the sockets behind it, the server API, health, metrics and the page. It is
// imported as httpd. It speaks plain HTTP; TLS ends at the load balancer.
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
	// Ready tells the state of each component; it must not block.
	Ready func() []Component
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
	// Removals keep users out. Required.
	Removals Removals
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
	// Limits counts what users publish on all nodes. Nil: nobody does.
	Limits Limits
	// Heartbeat is the period of heartbeats; who sends no byte for two is
	// closed. 25 s by default.
	Heartbeat time.Duration
	// DrainDelay is how long a draining node takes handshakes, until the
	// balancer has noticed; none by default. DrainWindow is the time over which
	// its clients are asked to move, 10 s by default, and DrainTimeout when,
	// from the begin, the rest is closed: 25 s by default.
	DrainDelay, DrainWindow, DrainTimeout time.Duration
	// Receivers tells how the nodes do that take over a draining node's
	// clients, where those of the scope are to be avoided; it must not block.
	// Nil: nothing is known of them.
	Receivers func(Scope) Receivers
	// Sessions and Owners keep clients' sessions; nil, both: none are kept.
	Sessions Sessions
	Owners   Owners
	// Takeover is how long an older socket may live beside a newer one of its
	// session that does not become live in its rooms. 10 s by default.
	Takeover time.Duration
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

	now       func() time.Duration // what rates are counted by; tests have their own
	overLimit int                  // see the constant; tests have their own
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
	orInt(&c.overLimit, overLimit)
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
	if c.Takeover <= 0 {
		c.Takeover = 10 * time.Second
	}
	if c.now == nil {
		start := time.Now()
		c.now = func() time.Duration { return time.Since(start) }
	}
	if c.Receivers == nil {
		c.Receivers = func(Scope) Receivers { return Receivers{} }
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
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	keys    []apiKey
	origins origins
	hosts   hosts
	proxies proxies
	plain   *plainCount

	rates  [rateKinds]allowance
	calls  *ledger // of API keys
	reads  *ledger // of users, over HTTP
	expiry expiry
	audit  *auditor
	page   []byte

	started time.Time

	session atomic.Uint64 // names connections in the welcome
	queued  atomic.Int64
	clock   atomic.Int64
	beat    beat
	public  *http.Server
	admin   *http.Server
	stop    chan struct{}
	loops   sync.WaitGroup
	gate    *rate.Limiter // of handshakes
	saver   saver
	owners  owners
	// arrivals are how long clients waited that were moved here.
	arrivals arrivals
	// handshakes counts those that were taken, came those of them whose session
	// was another node's, refused those that were too many, told the clients that
	// a drain asked to move, since the start.
	handshakes, came, refused meter
	told                      atomic.Int64

	mu sync.Mutex
	// Protects following.
	leaving  bool // the process ends once the drain is done
	stopping bool
	drain    *drain // nil: none is under way
	roster   roster
	empty    chan struct{} // closed when nobody is connected; nil: nobody waits
}

// New returns a server whose heartbeat runs; Serve makes it listen.
func New(cfg Config) *Server {
	cfg.defaults()
	s := &Server{
		cfg:     cfg,
		log:     cfg.Logger.With("component", "http"),
		keys:    hashKeys(cfg.APIKeys),
		origins: newOrigins(cfg.AllowedOrigins),
		hosts:   newHosts(cfg.AllowedHosts),
		proxies: cfg.TrustedProxies,
		roster:  roster{networks: map[netip.Prefix]int{}, users: map[string]*account{}},
		rates:   cfg.Rates.frameRates(cfg.MaxRooms),
		calls:   newLedger(perSecond(cfg.Rates.API)),
		reads:   newLedger(perSecond(cfg.Rates.History)),
		page:    page(cfg.Open),
		started: time.Now(),
		stop:    make(chan struct{}),
	}
	s.plain = newPlainCount(s)
	s.metrics = newMetrics(cfg.Registerer, func() float64 { return float64(s.queued.Load()) })
	s.audit = newAuditor(cfg.Audit, cfg.Node, s.log, &s.metrics.auditMetrics)
	s.beat.server, s.saver.server = s, s
	s.saver.wake = make(chan struct{}, 1)
	s.gate = rate.NewLimiter(rate.Limit(cfg.MaxHandshakeRate), cfg.MaxHandshakeRate)
	s.public = s.newHTTP(s.routes())
	s.public.ConnState = s.plain.note
	s.admin = s.newHTTP(s.adminRoutes())
	s.admin.WriteTimeout = 0 // a CPU profile takes as long as it is asked to
	s.expiry.began = s.started
	s.loops.Go(func() { s.beat.loop(cfg.Heartbeat, s.stop) })
	s.loops.Go(func() { s.expiry.loop(s.stop) })
	if cfg.Sessions != nil {
		s.loops.Go(func() { s.saver.loop(s.stop) })
	}
	return s
}

func (s *Server) newHTTP(h http.Handler) *http.Server {
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
		s.beat.each(func(k *socket) { k.conn.kill() })
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

// closes says whether a connection that comes now has come too late.
func (s *Server) closes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	phase := s.drain.at()
	return s.stopping || phase == phaseClosing || phase == phaseDrained
}

// clients returns how many connections there are.
func (s *Server) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roster.connected
}

// emptied returns a channel that is closed once there is no connection.
func (s *Server) emptied() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.noteEmpty()
	return empty
}

// noteEmpty tells who waits for the last connection to go. Caller holds mu.
func (s *Server) noteEmpty() {
	if s.roster.connected == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// welcome greets a client. Where no sessions are kept, what it is told is a
// name that nobody can resume.
func (s *Server) welcome(secret string, resumed bool, who *auth.Identity) protocol.Frame {
	if secret == "" {
		secret = fmt.Sprintf("%s-%d", s.cfg.Node, s.session.Add(1))
	}
	var user *string
	if who.User != "" {
		user = &who.User
	}
	return protocol.Welcome{
		User:          user,
		AuthExpiresMS: untilEnd(who.Expires).Milliseconds(),
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
