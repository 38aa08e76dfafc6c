package e2e

import (
	"context"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// A kind is one way to harm a fleet.
type kind struct {
	name string
	// harms is what it takes for itself: no two faults harm the same thing at
	// once. It is a node's own unless it is one that all share.
	harms string
	// short and long are how long it lasts in the two forms of a run; 0: not in
	// the short form, which another test covers.
	short, long time.Duration
	// do begins, and returns what says whether it bit: a fault that harms
	// nobody proves nothing. It is asked before undo.
	do func(*fleet, *station) (bit func() bool)
	// again is called every 50 ms while it lasts; nil: nothing.
	again func(*fleet, *station)
	undo  func(*fleet, *station)
}

// What faults harm.
const (
	process   = "process" // of a node
	clients   = "clients"
	toRedis   = "line to Redis"
	toPG      = "line to PostgreSQL"
	redisHost = "Redis"
	pgHost    = "PostgreSQL"
	aRoom     = "a room"
)

func (k *kind) shared() bool { return k.harms == redisHost || k.harms == pgHost || k.harms == aRoom }

// A line is a proxy of a station.
type line func(*station) *testkit.Proxy

var lines = map[string]line{
	clients: func(s *station) *testkit.Proxy { return s.clients },
	toRedis: func(s *station) *testkit.Proxy { return s.redis },
	toPG:    func(s *station) *testkit.Proxy { return s.postgres },
}

// kinds are all there are.
func kinds() []*kind {
	all := []*kind{
		{name: "node killed", harms: process, short: 500 * time.Millisecond, long: 2 * time.Second, do: killNode, undo: restartNode},
		{name: "node stopped", harms: process, short: 4 * time.Second, long: 20 * time.Second, do: stopNode,
			undo: func(_ *fleet, s *station) { s.Signal(syscall.SIGCONT) }},
		{name: "Redis killed", harms: redisHost, short: time.Second, long: 3 * time.Second, do: killRedis,
			undo: func(f *fleet, _ *station) { f.broker.Restart() }},
		{name: "Redis paused", harms: redisHost, long: 30 * time.Second, do: pauseRedis,
			undo: func(f *fleet, _ *station) { f.broker.Resume() }},
		{name: "PostgreSQL restarted -m immediate", harms: pgHost, short: 100 * time.Millisecond, long: time.Second, do: crashPostgres,
			undo: func(f *fleet, _ *station) { f.pg.Start() }},
		{name: "room held by a stranger", harms: aRoom, short: 3 * time.Second, long: 6 * time.Second, do: holdRoom,
			again: lookWhoWaits, undo: letRoomGo},
		{name: "clients torn amid frames", harms: clients, short: time.Second, long: 3 * time.Second,
			do: harm(clients, func(*testkit.Proxy) {}, func(h testkit.Harm) int { return h.Torn }),
			again: func(f *fleet, s *station) {
				s.clients.Tear(1 + f.dice.IntN(400))
			},
			undo: func(_ *fleet, s *station) { s.clients.Tear(0) }},
	}
	return append(append(append(all,
		lineKinds(clients, 0, 6*time.Second)...),
		lineKinds(toRedis, 0, 8*time.Second)...),
		lineKinds(toPG, 3*time.Second, 8*time.Second)...)
}

// lineKinds are what can happen to one line of a station. Those to Redis have a
// test of their own, which is why the short form has only the cut.
func lineKinds(harms string, stallShort, stallLong time.Duration) []*kind {
	proxy := lines[harms]
	half := time.Duration(0)
	if stallShort > 0 {
		half = 200 * time.Millisecond
	}
	return []*kind{
		{name: harms + " cut", harms: harms, short: 500 * time.Millisecond, long: 3 * time.Second,
			do:   harm(harms, func(p *testkit.Proxy) { p.Refuse(true); p.Cut() }, func(h testkit.Harm) int { return h.Cut + h.Refused }),
			undo: func(_ *fleet, s *station) { proxy(s).Refuse(false) }},
		{name: harms + " stalled", harms: harms, short: stallShort, long: stallLong,
			do:   harm(harms, (*testkit.Proxy).Stall, func(h testkit.Harm) int { return h.Held }),
			undo: func(_ *fleet, s *station) { proxy(s).Resume() }},
		{name: harms + " delayed", harms: harms, long: 3 * time.Second,
			do:   harm(harms, func(p *testkit.Proxy) { p.Delay(200 * time.Millisecond) }, func(h testkit.Harm) int { return h.Delayed }),
			undo: func(_ *fleet, s *station) { proxy(s).Delay(0) }},
		{name: harms + " half closed", harms: harms, short: half, long: 500 * time.Millisecond,
			do:   harm(harms, (*testkit.Proxy).HalfClose, func(h testkit.Harm) int { return h.HalfClosed }),
			undo: func(*fleet, *station) {}},
	}
}

// harm does something to a line; it bit when what count counts became more. Where
// nobody was connected at that moment, it is done again.
func harm(harms string, do func(*testkit.Proxy), count func(testkit.Harm) int) func(*fleet, *station) func() bool {
	return func(_ *fleet, s *station) func() bool {
		proxy := lines[harms](s)
		before := count(proxy.Harm())
		do(proxy)
		return func() bool {
			if count(proxy.Harm()) > before {
				return true
			}
			do(proxy)
			return false
		}
	}
}

func killNode(_ *fleet, s *station) func() bool {
	connected := s.clients.Connections() > 0
	s.wanted = false
	s.Kill()
	return func() bool { return connected && s.State() == "" }
}

func restartNode(_ *fleet, s *station) {
	s.wanted = true
	s.Launch()
}

func stopNode(f *fleet, s *station) func() bool {
	connected := s.clients.Connections() > 0
	s.Signal(syscall.SIGSTOP)
	f.wait("the node to be stopped", func() bool { return s.State() == "T" })
	return func() bool { return connected && s.State() == "T" }
}

func killRedis(f *fleet, _ *station) func() bool {
	f.broker.Kill()
	return func() bool { return f.broker.State() == "" }
}

func pauseRedis(f *fleet, _ *station) func() bool {
	f.broker.Pause()
	f.wait("Redis to be stopped", func() bool { return f.broker.State() == "T" })
	return func() bool { return f.broker.State() == "T" }
}

func crashPostgres(f *fleet, _ *station) func() bool {
	f.pg.Crash()
	return func() bool { return !f.pg.Running() }
}

// holdRoom has a transaction that is none of ours lock a room's row, as a psql
// does that somebody has forgotten. It bites when somebody has waited for it.
func holdRoom(f *fleet, _ *station) func() bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	f.holder, f.waitedFor = nil, false
	conn, err := pgx.Connect(ctx, f.pg.URL())
	if err == nil {
		f.holder = conn
		_, err = conn.Exec(ctx, `BEGIN; SELECT FROM rooms WHERE name = 'room-0' FOR UPDATE`)
	}
	if err != nil { // PostgreSQL may be away meanwhile
		f.t.Logf("a room is not held: %v", err)
	}
	return func() bool { return f.waitedFor }
}

// lookWhoWaits asks the transaction that holds a room whether anybody waits for
// it: a node does so for two seconds, and then only looks now and then.
func lookWhoWaits(f *fleet, _ *station) {
	if f.holder == nil || f.waitedFor {
		return
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Second)
	defer cancel()
	var waits bool
	err := f.holder.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))`).Scan(&waits)
	f.waitedFor = err == nil && waits // it may have died with PostgreSQL
}

func letRoomGo(f *fleet, _ *station) {
	if f.holder != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.t.Context()), time.Second)
		defer cancel()
		_ = f.holder.Close(ctx) // as above
	}
}
