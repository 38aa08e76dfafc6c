package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file prepares each new connection to PostgreSQL. The settings of a session
// are set by a statement: connection poolers refuse them in the startup message
// (PgBouncer by default), or ignore them silently (ignore_startup_parameters).
//
// Behind a pooler, a connection needs a server connection of its own: prepared
// statements, settings and the verified identity of the server belong to one. A
// pooler that switches it between transactions is refused.

// errPoolerSwitches is the refusal of such a pooler.
var errPoolerSwitches = &operatorError{"DATABASE_URL leads to a connection pooler that gives each transaction another server connection " +
	"(PgBouncer's pool_mode transaction or statement): set pool_mode = session for this database, or name PostgreSQL itself"}

// connectTimeout bounds the time to open one connection, unless DATABASE_URL has a
// connect_timeout, and the time to prepare it.
const connectTimeout = 2 * time.Second

// maxConnectTimeout bounds what DATABASE_URL may set.
const maxConnectTimeout = 30 * time.Second

// startupParams stay in the startup message, the only place where they work.
// Each pooler knows application_name.
var startupParams = []string{"application_name", "options", "replication"}

// sessionParams returns the parameters of a session. They bound the waits of a
// connection, and leave the planner no choice that depends on statistics: the
// tables are empty right after the migration, and a plan made then must still be
// good with millions of rows.
func sessionParams(lockTimeout time.Duration) map[string]string {
	return map[string]string{
		"application_name":                    "switchyard",
		"default_transaction_isolation":       "read committed",
		"lock_timeout":                        fmt.Sprint(lockTimeout.Milliseconds()),
		"statement_timeout":                   "10s",
		"idle_in_transaction_session_timeout": "5s",
		"tcp_keepalives_idle":                 "5",
		"tcp_keepalives_interval":             "2",
		"tcp_keepalives_count":                "3",
		"tcp_user_timeout":                    "10000",
		"enable_seqscan":                      "off",
		"enable_hashjoin":                     "off",
		"enable_mergejoin":                    "off",
		"jit":                                 "off",
		"plan_cache_mode":                     "force_generic_plan",
	}
}

// configureSession makes connections of c prepare their sessions with these
// parameters, and with those of DATABASE_URL. pooled is set when a connection
// has found a pooler. probe checks what kind of pooler it is.
func configureSession(c *pgx.ConnConfig, params map[string]string, probe bool, pooled *atomic.Bool) *sessionPreparer {
	session := &sessionPreparer{params: map[string]string{}, pooled: pooled}
	maps.Copy(session.params, c.RuntimeParams)
	maps.Copy(session.params, params)
	maps.DeleteFunc(c.RuntimeParams, func(name, _ string) bool { return !slices.Contains(startupParams, name) })
	for _, name := range startupParams[1:] {
		delete(session.params, name)
	}
	if name := params["application_name"]; name != "" {
		c.RuntimeParams["application_name"] = name
	}
	// A URL for another program may have modes that only a pooler of
	// transactions needs. They do not fit the writers' prepared statements.
	c.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	c.StatementCacheCapacity = max(c.StatementCacheCapacity, 64)
	setDefault(&c.ConnectTimeout, connectTimeout)
	c.ConnectTimeout = min(c.ConnectTimeout, maxConnectTimeout)
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	c.DialFunc = dialer.DialContext
	// The log is on the primary. Of several hosts, the first that answers may be
	// a standby.
	if c.ValidateConnect == nil && severalHosts(c) {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	}
	if probe {
		session.second = c.Copy()
	}
	c.AfterConnect = session.prepare
	return session
}

// A sessionPreparer prepares new connections. It is safe for concurrent use.
type sessionPreparer struct {
	params  map[string]string
	pooled  *atomic.Bool
	second  *pgx.ConnConfig       // to probe a pooler with another connection; nil: don't
	refresh func(*pgx.ConnConfig) // is called with second before it connects; or nil
}

// backendKey has the id of the verified server process in PgConn.CustomData.
const backendKey = "backend"

// backendOf returns the server process that a connection was prepared with.
func backendOf(conn *pgx.Conn) int32 {
	backend, _ := conn.PgConn().CustomData()[backendKey].(int32)
	return backend
}

// prepare sets the parameters. Without a pooler that is all: the server process
// is the one that the startup named.
func (s *sessionPreparer) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+probeTimeout)
	defer cancel()
	values, backend, err := s.set(ctx, conn)
	if err != nil {
		return err
	}
	conn.CustomData()[backendKey] = backend
	if uint32(backend) == conn.PID() {
		return nil
	}
	s.pooled.Store(true)
	if err := s.check(ctx, conn, values, backend); err != nil {
		return err
	}
	if s.second != nil {
		if err := s.probe(ctx, conn); err != nil {
			return err
		}
	}
	// The server connection may have served other clients, whose prepared
	// statements and locks are still there if the pooler has no reset query. Not
	// before the probe: it may have to be shared with other clients.
	if err := conn.Exec(ctx, "DISCARD ALL").Close(); err != nil {
		return fmt.Errorf("reset the server connection: %w", err)
	}
	if values, backend, err = s.set(ctx, conn); err != nil {
		return err
	}
	conn.CustomData()[backendKey] = backend
	return s.check(ctx, conn, values, backend)
}

// set sets all parameters with one statement. It returns their values as the
// server prints them, and the id of the server process.
func (s *sessionPreparer) set(ctx context.Context, conn *pgconn.PgConn) (values []string, backend int32, err error) {
	sql, args := sqlBackend, [][]byte{}
	for i, name := range slices.Sorted(maps.Keys(s.params)) {
		sql += fmt.Sprintf(", set_config($%d, $%d, false)", 2*i+1, 2*i+2)
		args = append(args, []byte(name), []byte(s.params[name]))
	}
	return readBackend(ctx, conn, sql, args)
}

// check reads the parameters with another statement. If they or the server
// process differ, a pooler has switched or reset the server connection.
func (s *sessionPreparer) check(ctx context.Context, conn *pgconn.PgConn, want []string, backend int32) error {
	sql, args := sqlBackend, [][]byte{}
	for i, name := range slices.Sorted(maps.Keys(s.params)) {
		sql += fmt.Sprintf(", current_setting($%d)", i+1)
		args = append(args, []byte(name))
	}
	values, now, err := readBackend(ctx, conn, sql, args)
	if err != nil {
		return err
	}
	if now != backend || !slices.Equal(values, want) {
		return errPoolerSwitches
	}
	return nil
}

// readBackend runs a statement whose row has the id of the server process first.
func readBackend(ctx context.Context, conn *pgconn.PgConn, sql string, args [][]byte) (values []string, backend int32, err error) {
	r := conn.ExecParams(ctx, sql, args, nil, nil, nil).Read()
	if r.Err != nil {
		return nil, 0, fmt.Errorf("prepare the session: %w", r.Err)
	}
	if len(r.Rows) != 1 {
		return nil, 0, fmt.Errorf("prepare the session: %d rows", len(r.Rows))
	}
	if _, err := fmt.Sscan(string(r.Rows[0][0]), &backend); err != nil {
		return nil, 0, fmt.Errorf("prepare the session: %w", err)
	}
	for _, v := range r.Rows[0][1:] {
		values = append(values, string(v))
	}
	return values, backend, nil
}

const (
	// probeRounds is how often probe looks: the traffic of other clients may hide
	// a switch.
	probeRounds = 3
	// probeTimeout bounds the wait for the second connection.
	probeTimeout = time.Second
)

// probe finds out whether the pooler gives this connection's server process to
// another connection while this one is idle, or this one another process. A
// transaction of the second connection keeps its process, so that not even a
// pooler that takes turns can give the same one each time. If there is no second
// connection to be had, it finds nothing: sqlAppend and sqlPing check, too.
func (s *sessionPreparer) probe(ctx context.Context, conn *pgconn.PgConn) error {
	short, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	config := s.second.Copy()
	if s.refresh != nil {
		s.refresh(config)
	}
	second, err := pgconn.ConnectConfig(short, &config.Config)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = second.Close(ctx)
	}()
	_, mine, err := readBackend(ctx, conn, sqlBackend, nil)
	if err != nil {
		return err
	}
	for range probeRounds {
		if err := isStill(ctx, conn, mine); err != nil {
			return err
		}
		if err := second.Exec(short, "BEGIN").Close(); err != nil {
			var refused *pgconn.PgError
			if errors.As(err, &refused) && strings.Contains(refused.Message, "statement pooling mode") {
				return errPoolerSwitches
			}
			return nil // no server connection is left for a second one
		}
		_, theirs, err := readBackend(short, second, sqlBackend, nil)
		if err == nil && theirs == mine {
			return errPoolerSwitches
		}
		if err := isStill(ctx, conn, mine); err != nil {
			return err
		}
		if err := second.Exec(short, "ROLLBACK").Close(); err != nil {
			return nil //nolint:nilerr // it has answered before: the pooler has closed it
		}
	}
	return nil
}

// isStill returns an error if a connection has another server process now.
func isStill(ctx context.Context, conn *pgconn.PgConn, backend int32) error {
	_, now, err := readBackend(ctx, conn, sqlBackend, nil)
	if err == nil && now != backend {
		err = errPoolerSwitches
	}
	return err
}

const sqlBackend = "SELECT pg_backend_pid()"
