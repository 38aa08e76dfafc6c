package store

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
)

const (
	// hangTimeout is the AppendTimeout of the tests of a database that does not answer.
	hangTimeout = time.Second
	// hangAnswer is when a publication that waits alone is answered at the latest: its
	// attempt ends with the timeout, and one wait of backoff may follow.
	hangAnswer = hangTimeout + hangTimeout/20
	// hangAnswerBehind is the same for one that waited behind another: its own attempt
	// gets at least a fifth of the timeout.
	hangAnswerBehind = hangAnswer + hangTimeout/5
)

// A hangingPostgres accepts connections and, once it hangs, answers nothing. Until
// then it answers the startup.
type hangingPostgres struct {
	atStartup bool

	mu     sync.Mutex
	closed bool
	conns  []net.Conn
}

func (h *hangingPostgres) dial(context.Context, string, string) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	client, server := net.Pipe()
	h.conns = append(h.conns, server)
	go func() {
		backend := pgproto3.NewBackend(server, server)
		if _, err := backend.ReceiveStartupMessage(); err != nil || h.atStartup {
			return
		}
		backend.Send(&pgproto3.AuthenticationOk{})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		for err := backend.Flush(); err == nil; {
			_, err = backend.Receive()
		}
	}()
	return client, nil
}

// close ends all connections, also those on which the driver waits for an answer to
// its request to cancel a statement.
func (h *hangingPostgres) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, c := range h.conns {
		_ = c.Close()
	}
}

// open returns a log that is not started yet, without its loops. Its writers are connected
// if the server answers the startup.
func (h *hangingPostgres) open(t *testing.T) *Postgres {
	t.Helper()
	pool, err := pgxpool.ParseConfig("postgres://postgres@10.0.0.1/test?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{AppendTimeout: hangTimeout, AppendWorkers: 1, MaxConns: 4}.withDefaults()
	configureSession(pool.ConnConfig, sessionParams(cfg.lockTimeout), false, new(atomic.Bool))
	pool.ConnConfig.DialFunc = h.dial
	pool.ConnConfig.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"10.0.0.1"}, nil }
	p := &Postgres{cfg: cfg, m: newMetrics(prometheus.NewRegistry()), conn: pool.ConnConfig}
	writers := []*pgWriter{{p: p}, {p: p}}
	if !h.atStartup {
		for _, w := range writers {
			c := p.conn.Copy()
			c.AfterConnect = nil // the server answers no statement
			if w.conn, err = pgx.ConnectConfig(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			w.renewAt = time.Now().Add(time.Hour)
		}
	}
	p.committer = newCommitter(cfg, p.m, []writer{writers[0]}, writers[1])
	if err := p.openPools(pool); err != nil {
		t.Fatal(err)
	}
	return p
}

// Each answer comes in time, whether the server hangs while it is being connected to
// or while a statement runs.
func TestAnswersOfAHangingDatabaseAreBounded(t *testing.T) {
	for name, atStartup := range map[string]bool{"while a statement runs": false, "while it is being connected to": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &hangingPostgres{atStartup: atStartup}
				p := server.open(t)
				defer server.close()
				defer func() { _ = p.Close(t.Context()) }()
				n := &node{logUnderTest: p, t: t, completing: map[message.Room]bool{}}
				n.start()
				expectUnavailable(t, "a publish", hangAnswer, func() error { return n.publish("room", "ann", "1", "x").Err })
				expectUnavailable(t, "a batch", hangAnswer, func() error { return n.AppendBatch(t.Context(), publications("room 2 x")) })
				ahead := n.append("room", "ann", "3", "x")
				time.Sleep(hangTimeout / 10)
				expectUnavailable(t, "a publish behind another", hangAnswerBehind, func() error { return n.publish("room", "ann", "4", "x").Err })
				if !errors.Is(wait(t, ahead).Err, message.ErrUnavailable) {
					t.Errorf("the publish before it: %v", ahead.Err)
				}
				began := time.Now()
				if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); err == nil {
					t.Error("a database that hangs can be read")
				}
				if took := time.Since(began); took != hangTimeout {
					t.Errorf("a read took %v, want %v", took, hangTimeout)
				}
			})
		})
	}
}

// expectUnavailable fails the test unless the answer is that the log is unavailable,
// and comes after hangTimeout and within most.
func expectUnavailable(t *testing.T, what string, most time.Duration, publish func() error) {
	t.Helper()
	began := time.Now()
	err := publish()
	took := time.Since(began)
	if !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("%s: %v", what, err)
	}
	if took < hangTimeout || took > most {
		t.Errorf("%s took %v, want %v to %v", what, took, hangTimeout, most)
	}
}
