// Package app builds the service from its parts, in order, and stops them in
// reverse. Tests start the whole service with it, in their own process.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"switchyard/internal/auth"
	"switchyard/internal/broker"
	"switchyard/internal/config"
	httpd "switchyard/internal/http"
	"switchyard/internal/hub"
	"switchyard/internal/message"
	"switchyard/internal/session"
	"switchyard/internal/sharedstate"
	"switchyard/internal/store"
)

// Each package declares the interfaces that it needs; these lines prove that the
// others implement them.
var (
	_ hub.Log           = (*store.Postgres)(nil)
	_ hub.CommitFeed    = (*store.Postgres)(nil)
	_ hub.BatchAppender = (*store.Postgres)(nil)
	_ hub.RoomLister    = (*store.Postgres)(nil)
	_ messageLog        = (*store.Postgres)(nil)
	_ hub.Log           = (*store.SQLite)(nil)
	_ hub.CommitFeed    = (*store.SQLite)(nil)
	_ hub.BatchAppender = (*store.SQLite)(nil)
	_ hub.RoomLister    = (*store.SQLite)(nil)
	_ messageLog        = (*store.SQLite)(nil)
	_ hub.Presence      = (*sharedstate.Node)(nil)
	_ session.Store     = (*sharedstate.Node)(nil)
	_ session.Events    = (*sharedstate.Node)(nil)
	_ httpd.UserLimits  = (*sharedstate.Node)(nil)
	_ httpd.Bans        = (*sharedstate.Node)(nil)
	_ httpd.Verifier    = (*auth.Verifier)(nil)
	_ messageBroker     = (*broker.Redis)(nil)
	_ messageBroker     = (*broker.Memory)(nil)
)

// A messageLog is the log with what App needs to start, check and stop it.
type messageLog interface {
	hub.Log
	hub.CommitFeed
	hub.BatchAppender
	hub.RoomLister
	Start(completed func([]*message.Publication))
	Check() error
	Close(context.Context) error
}

// A messageBroker is the broker with what App needs to start, check and stop it.
type messageBroker interface {
	hub.Broker
	Start(broker.Receive)
	Up() bool
	Close(context.Context) error
}

// Each part may take this long to stop.
const (
	httpStopTimeout = 5 * time.Second
	// clientsStopTimeout is added to DRAIN_TIMEOUT. After that moment the last wave
	// takes a second or two, closing the remaining connections at most ten, their
	// answers five, and the search for them on other nodes three.
	clientsStopTimeout = 20 * time.Second
	hubStopTimeout     = 5 * time.Second
	authStopTimeout    = 2 * time.Second
	auditStopTimeout   = time.Second
	// sharedStateStopTimeout covers the node events that wait to be published and
	// the node's last heartbeat.
	sharedStateStopTimeout = 2 * time.Second
	brokerStopTimeout      = 2 * time.Second
	storeStopTimeout       = 8 * time.Second
	// stopTimeout bounds everything after DRAIN_TIMEOUT. The documentation has
	// operators set a stop grace of DRAIN_TIMEOUT + 30 s, after which the process is
	// killed.
	stopTimeout = 28 * time.Second
	// openTimeout bounds migrating and opening the log.
	openTimeout = 30 * time.Second
)

// Options are what Start needs.
type Options struct {
	Config  config.Config
	Version string
	Logger  *slog.Logger
	// LogLevel is the level of Logger, which the admin listener changes.
	LogLevel *slog.LevelVar
	// The audit log is written to Stdout or Stderr where AUDIT_LOG says so.
	Stdout, Stderr io.Writer
}

// An App is one running node. Its methods belong to one goroutine, except Failed
// and those that other parts call back.
type App struct {
	opt         Options
	node        string
	lifecycle   lifecycle
	memory      memoryPlan
	queueMemory *httpd.Memory
	registry    *prometheus.Registry
	verifier    *auth.Verifier
	audit       io.Writer // nil when AUDIT_LOG is off
	log         messageLog
	broker      messageBroker
	sharedState *sharedstate.Node
	hub         *hub.Hub
	http        *httpd.Server
	listener    net.Listener // the public one
	failed      chan error   // one error of each listener; never closed
}

// Start builds a node and makes it listen. When a part can't be built, Start stops
// the parts before it through the same steps as Stop, and returns the error.
func Start(ctx context.Context, opt Options) (*App, error) {
	a := &App{
		opt:       opt,
		node:      nodeName(),
		lifecycle: lifecycle{log: opt.Logger.With("component", "app")},
		registry:  prometheus.NewRegistry(),
		failed:    make(chan error, 2),
	}
	if err := a.build(ctx); err != nil {
		a.lifecycle.log = slog.New(slog.DiscardHandler) // the error alone is worth a line
		return nil, errors.Join(err, a.lifecycle.stop(context.WithoutCancel(ctx)))
	}
	return a, nil
}

func (a *App) build(ctx context.Context) error {
	a.registerBuildMetrics()
	for _, part := range []func(context.Context) error{a.planMemory, a.openAuth, a.openAudit, a.openLog, a.openBroker, a.openSharedState, a.startHub, a.listen} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// URL returns the address of the page.
func (a *App) URL() string {
	host, port, _ := net.SplitHostPort(a.listener.Addr().String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/"
}

// Failed returns a channel that receives the error of a listener when it ends.
func (a *App) Failed() <-chan error { return a.failed }

// Stop stops the node: it becomes unready first, then its clients are moved, and
// then HTTP, hub, shared state, broker and log stop. Each step is bounded, and all
// together by DRAIN_TIMEOUT + stopTimeout. When ctx ends, the remaining steps end
// early.
func (a *App) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.opt.Config.Drain.Timeout+stopTimeout)
	defer cancel()
	return a.lifecycle.stop(ctx)
}

func (a *App) registerBuildMetrics() {
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "switchyard_build_info",
		Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{
			"version": a.opt.Version, "color": a.opt.Config.HTTP.Color, "deployment": a.opt.Config.HTTP.Deployment,
		},
	})
	info.Set(1)
	a.registry.MustRegister(info)
	a.registerMemoryLimit()
}

func (a *App) openLog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	c := a.opt.Config.Store
	url := c.URL.Reveal()
	if err := store.Migrate(ctx, url); err != nil {
		return err
	}
	cfg := store.Config{
		URL:             url,
		ReadURL:         config.Reread("DATABASE_URL"),
		MaxConns:        c.MaxConns,
		ConnLifetime:    c.ConnLifetime,
		AppendWorkers:   c.Lanes,
		IDWindow:        c.IDWindow,
		RetentionAge:    c.RetentionAge,
		RetentionCount:  c.RetentionCount,
		AppendTimeout:   c.AppendTimeout,
		MaxPendingBytes: int(a.memory.pending),
		TrustFailover:   c.TrustFailover,
		Logger:          a.opt.Logger,
		Registerer:      a.registry,
	}
	var err error
	if strings.HasPrefix(url, "sqlite:") {
		a.log, err = store.OpenSQLite(ctx, cfg)
	} else {
		a.log, err = store.OpenPostgres(ctx, cfg)
	}
	if err != nil {
		return err
	}
	a.lifecycle.onStop("log", storeStopTimeout, a.log.Close)
	return nil
}

func (a *App) openBroker(context.Context) error {
	c := a.opt.Config.Broker
	cfg := broker.Config{
		URL:        c.URL.Reveal(),
		Reread:     config.Reread("REDIS_URL"),
		Prefix:     c.Prefix,
		Queue:      c.Queue,
		Logger:     a.opt.Logger,
		Registerer: a.registry,
	}
	if cfg.URL == "" {
		a.broker = broker.NewMemory(new(broker.Bus), cfg)
	} else {
		b, err := broker.OpenRedis(cfg)
		if err != nil {
			return err
		}
		a.broker = b
	}
	a.lifecycle.onStop("broker", brokerStopTimeout, a.broker.Close)
	return nil
}

// openSharedState opens the shared state: in Redis, or in memory for a single
// node.
func (a *App) openSharedState(context.Context) error {
	limits := a.opt.Config.Limits
	cfg := sharedstate.Config{
		Node:       a.node,
		Prefix:     a.opt.Config.Broker.Prefix,
		TTL:        a.opt.Config.Session.TTL,
		Rates:      sharedstate.Rates{Calls: float64(limits.UserPublish), Bytes: float64(limits.UserBytes)},
		ReadRates:  sharedstate.Rates{Calls: float64(limits.UserHistory), Bytes: float64(limits.UserReadBytes)},
		Logger:     a.opt.Logger,
		Registerer: a.registry,
	}
	redis := broker.Config{URL: a.opt.Config.Broker.URL.Reveal(), Reread: config.Reread("REDIS_URL"), Logger: a.opt.Logger}
	var err error
	if redis.URL == "" {
		a.sharedState, err = sharedstate.NewMemory(nil, cfg)
	} else if cfg.Redis, cfg.ClusterSlots, err = broker.Options(redis); err == nil {
		a.sharedState, err = sharedstate.OpenRedis(cfg)
	}
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	a.lifecycle.onStop("shared state", sharedStateStopTimeout, a.sharedState.Close)
	return nil
}

func (a *App) startHub(context.Context) error {
	c := a.opt.Config.Hub
	a.hub = hub.New(hub.Config{
		Log:           a.log,
		Feed:          a.log,
		Batches:       a.log,
		RoomLister:    a.log,
		Broker:        a.broker,
		Presence:      a.sharedState,
		Readers:       a.sharedState,
		Memory:        a.queueMemory,
		PresenceLimit: a.opt.Config.Session.PresenceLimit,
		RepairWait:    c.RepairWait,
		MaxInflight:   c.MaxInflight,
		MaxRooms:      c.MaxRooms,
		MemoryLimit:   a.memory.limit,
		Node:          hostName(), // without a random part, so that a host keeps one canary room
		Logger:        a.opt.Logger,
		Registerer:    a.registry,
	})
	a.lifecycle.onStop("hub", hubStopTimeout, a.hub.Close)
	a.broker.Start(a.hub.Receive)
	a.log.Start(a.hub.Completed)
	a.hub.Start()
	return nil
}

// openListeners opens the addresses for clients and for operators.
func (a *App) openListeners(ctx context.Context) (public, admin net.Listener, err error) {
	var lc net.ListenConfig
	addr, adminAddr := a.opt.Config.HTTP.ListenAddr, a.opt.Config.Admin.Addr
	if public, err = lc.Listen(ctx, "tcp", addr); err != nil {
		return nil, nil, fmt.Errorf("LISTEN_ADDR=%s: %w; choose a free address", addr, err)
	}
	if admin, err = lc.Listen(ctx, "tcp", adminAddr); err != nil {
		_ = public.Close()
		return nil, nil, fmt.Errorf("ADMIN_ADDR=%s: %w; choose a free address", adminAddr, err)
	}
	return public, admin, nil
}

func (a *App) listen(ctx context.Context) error {
	c := a.opt.Config.HTTP
	public, admin, err := a.openListeners(ctx)
	if err != nil {
		return err
	}
	a.listener = public
	a.http = httpd.New(httpd.Config{
		Hub:              a.hub,
		Components:       a.components,
		Node:             a.node,
		Color:            c.Color,
		Deployment:       c.Deployment,
		Version:          a.opt.Version,
		AllowedOrigins:   c.AllowedOrigins,
		AllowedHosts:     c.AllowedHosts,
		TrustedProxies:   c.TrustedProxies,
		MaxPerUser:       a.opt.Config.Limits.MaxPerUser,
		MaxPerAddress:    a.opt.Config.Limits.MaxPerAddress,
		MaxRooms:         a.opt.Config.Hub.MaxRooms,
		Rates:            rates(a.opt.Config.Limits),
		Verifier:         a.verifier,
		AuthTimeout:      a.opt.Config.Auth.Timeout,
		AuthQueryToken:   a.opt.Config.Auth.QueryToken,
		Open:             hasNoTokenKeys(a.opt.Config.Auth),
		Bans:             a.sharedState,
		APIKeys:          c.APIKeys.Reveal(),
		MaxFrame:         c.MaxFrame,
		QueueBytes:       c.QueueBytes,
		Memory:           a.queueMemory,
		MaxConnections:   a.memory.connections,
		Descriptors:      clientDescriptors(a.opt.Config.Store.MaxConns),
		MaxHandshakeRate: c.MaxHandshakeRate,
		IdleTimeout:      c.IdleTimeout,
		Heartbeat:        c.Heartbeat,
		IDWindow:         a.opt.Config.Store.IDWindow,
		DrainDelay:       a.opt.Config.Drain.Delay,
		DrainWindow:      a.opt.Config.Drain.Window,
		DrainTimeout:     a.opt.Config.Drain.Timeout,
		MoveTargets:      a.moveTargets,
		Sessions:         a.sharedState,
		SessionEvents:    a.sharedState,
		UserLimits:       a.sharedState,
		Audit:            a.audit,
		Logger:           a.opt.Logger,
		LogLevel:         a.opt.LogLevel,
		Registerer:       a.registry,
		Gatherer:         a.registry,
	})
	a.verifier.LogConfig()
	a.sharedState.Start(sharedstate.Hooks{Status: a.http.Status, Notify: a.handleNodeEvent, Epoch: a.hub.Epoch})
	go func() { a.failed <- a.http.Serve(public) }()
	go func() { a.failed <- a.http.ServeAdmin(admin) }()
	a.lifecycle.onStop("http", httpStopTimeout, a.http.Shutdown)
	a.lifecycle.onStop("clients", a.opt.Config.Drain.Timeout+clientsStopTimeout, a.http.DrainForShutdown)
	return nil
}
