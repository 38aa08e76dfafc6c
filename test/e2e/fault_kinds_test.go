package e2e

import (
	"context"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// A faultKind is one kind of fault.
type faultKind struct {
	name string
	// target is what the fault harms. No two faults have the same target at once. Each
	// node has its own, unless shared returns true.
	target string
	// short and long are how long the fault lasts in the two forms of a run. A fault
	// whose short is 0 is only in the long form.
	short, long time.Duration
	// inject begins the fault. It returns a function, called before undo, that says
	// whether the fault took effect: one that harms nothing proves nothing.
	inject func(*faultEnv, *proxiedNode) (tookEffect func() bool)
	// onTick, unless nil, is called every 50 ms while the fault lasts.
	onTick func(*faultEnv, *proxiedNode)
	undo   func(*faultEnv, *proxiedNode)
}

// Targets of faults.
const (
	targetProcess      = "process" // of a node
	targetClients      = "clients"
	targetRedisLink    = "link to Redis"
	targetPostgresLink = "link to PostgreSQL"
	targetRedis        = "Redis"
	targetPostgres     = "PostgreSQL"
	targetRoom         = "a room"
)

func (k *faultKind) shared() bool {
	return k.target == targetRedis || k.target == targetPostgres || k.target == targetRoom
}

// A proxySelector returns one of the proxies of a node.
type proxySelector func(*proxiedNode) *testkit.Proxy

var proxyOf = map[string]proxySelector{
	targetClients:      func(s *proxiedNode) *testkit.Proxy { return s.clientProxy },
	targetRedisLink:    func(s *proxiedNode) *testkit.Proxy { return s.redisProxy },
	targetPostgresLink: func(s *proxiedNode) *testkit.Proxy { return s.postgresProxy },
}

// faultKinds returns all kinds of faults.
func faultKinds() []*faultKind {
	all := []*faultKind{
		{name: "node killed", target: targetProcess, short: 500 * time.Millisecond, long: 2 * time.Second, inject: killNode, undo: restartNode},
		{name: "node paused", target: targetProcess, short: 4 * time.Second, long: 20 * time.Second, inject: pauseNode,
			undo: func(_ *faultEnv, s *proxiedNode) { s.Signal(syscall.SIGCONT) }},
		{name: "Redis killed", target: targetRedis, short: time.Second, long: 3 * time.Second, inject: killRedis,
			undo: func(f *faultEnv, _ *proxiedNode) { f.broker.Restart() }},
		{name: "Redis paused", target: targetRedis, long: 30 * time.Second, inject: pauseRedis,
			undo: func(f *faultEnv, _ *proxiedNode) { f.broker.Resume() }},
		{name: "PostgreSQL restarted -m immediate", target: targetPostgres, short: 100 * time.Millisecond, long: time.Second, inject: crashPostgres,
			undo: func(f *faultEnv, _ *proxiedNode) { f.pg.Start() }},
		{name: "room locked by another program", target: targetRoom, short: 3 * time.Second, long: 6 * time.Second, inject: lockRoom,
			onTick: checkLockAwaited, undo: unlockRoom},
		{name: "clients cut within frames", target: targetClients, short: time.Second, long: 3 * time.Second,
			inject: injectLinkFault(targetClients, func(*testkit.Proxy) {}, func(c testkit.FaultCounts) int { return c.Truncated }),
			onTick: func(f *faultEnv, s *proxiedNode) {
				s.clientProxy.TruncateAfter(1 + f.rng.IntN(400))
			},
			undo: func(_ *faultEnv, s *proxiedNode) { s.clientProxy.TruncateAfter(0) }},
	}
	return append(append(append(all,
		linkFaults(targetClients, 0, 6*time.Second)...),
		linkFaults(targetRedisLink, 0, 8*time.Second)...),
		linkFaults(targetPostgresLink, 3*time.Second, 8*time.Second)...)
}

// linkFaults returns the faults of one link of a node. The short form has at most the
// stall. TestVerifyCommand cuts clients, TestDeliveryDuringRedisFaults has the link to
// Redis, and TestShortPostgreSQLFaultsOnlyDelayPublishers the one to PostgreSQL.
func linkFaults(target string, stallShort, stallLong time.Duration) []*faultKind {
	proxy := proxyOf[target]
	return []*faultKind{
		{name: target + " cut", target: target, long: 3 * time.Second,
			inject: injectLinkFault(target, func(p *testkit.Proxy) { p.Refuse(true); p.Cut() }, func(c testkit.FaultCounts) int { return c.Cut + c.Refused }),
			undo:   func(_ *faultEnv, s *proxiedNode) { proxy(s).Refuse(false) }},
		{name: target + " stalled", target: target, short: stallShort, long: stallLong,
			inject: injectLinkFault(target, (*testkit.Proxy).Stall, func(c testkit.FaultCounts) int { return c.Stalled }),
			undo:   func(_ *faultEnv, s *proxiedNode) { proxy(s).Resume() }},
		{name: target + " delayed", target: target, long: 3 * time.Second,
			inject: injectLinkFault(target, func(p *testkit.Proxy) { p.Delay(200 * time.Millisecond) }, func(c testkit.FaultCounts) int { return c.Delayed }),
			undo:   func(_ *faultEnv, s *proxiedNode) { proxy(s).Delay(0) }},
		{name: target + " half closed", target: target, long: 500 * time.Millisecond,
			inject: injectLinkFault(target, (*testkit.Proxy).HalfClose, func(c testkit.FaultCounts) int { return c.HalfClosed }),
			undo:   func(*faultEnv, *proxiedNode) {}},
	}
}

// injectLinkFault returns an inject that does something to a link. The fault took
// effect once count has grown. Without a connection at that moment, do is repeated.
func injectLinkFault(target string, do func(*testkit.Proxy), count func(testkit.FaultCounts) int) func(*faultEnv, *proxiedNode) func() bool {
	return func(_ *faultEnv, s *proxiedNode) func() bool {
		proxy := proxyOf[target](s)
		before := count(proxy.FaultCounts())
		do(proxy)
		return func() bool {
			if count(proxy.FaultCounts()) > before {
				return true
			}
			do(proxy)
			return false
		}
	}
}

func killNode(_ *faultEnv, s *proxiedNode) func() bool {
	connected := s.clientProxy.Connections() > 0
	s.shouldRun = false
	s.Kill()
	return func() bool { return connected && s.State() == "" }
}

func restartNode(_ *faultEnv, s *proxiedNode) {
	s.shouldRun = true
	s.Launch()
}

func pauseNode(f *faultEnv, s *proxiedNode) func() bool {
	connected := s.clientProxy.Connections() > 0
	s.Signal(syscall.SIGSTOP)
	f.eventually("the node to be stopped", func() bool { return s.State() == "T" })
	return func() bool { return connected && s.State() == "T" }
}

func killRedis(f *faultEnv, _ *proxiedNode) func() bool {
	f.broker.Kill()
	return func() bool { return f.broker.State() == "" }
}

func pauseRedis(f *faultEnv, _ *proxiedNode) func() bool {
	f.broker.Pause()
	f.eventually("Redis to be stopped", func() bool { return f.broker.State() == "T" })
	return func() bool { return f.broker.State() == "T" }
}

func crashPostgres(f *faultEnv, _ *proxiedNode) func() bool {
	f.pg.Crash()
	return func() bool { return !f.pg.Running() }
}

// lockRoom has a foreign transaction lock a room's row, as a forgotten psql session
// does. It takes effect once a node has waited for the lock.
func lockRoom(f *faultEnv, _ *proxiedNode) func() bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	f.lockHolder, f.lockAwaited = nil, false
	conn, err := pgx.Connect(ctx, f.pg.URL())
	if err == nil {
		f.lockHolder = conn
		_, err = conn.Exec(ctx, `BEGIN; SELECT FROM rooms WHERE name = 'room-0' FOR UPDATE`)
	}
	if err != nil { // another fault may have stopped PostgreSQL
		f.t.Logf("the room is not locked: %v", err)
	}
	return func() bool { return f.lockAwaited }
}

// checkLockAwaited records whether a node waits for the room's lock: it does so for up
// to two seconds, and later only now and then for 20 ms.
func checkLockAwaited(f *faultEnv, _ *proxiedNode) {
	if f.lockHolder == nil || f.lockAwaited {
		return
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Second)
	defer cancel()
	var waiting bool
	err := f.lockHolder.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))`).Scan(&waiting)
	f.lockAwaited = err == nil && waiting // the connection may have ended with PostgreSQL
}

func unlockRoom(f *faultEnv, _ *proxiedNode) {
	if f.lockHolder != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.t.Context()), time.Second)
		defer cancel()
		_ = f.lockHolder.Close(ctx) // it may have ended with PostgreSQL
	}
}
