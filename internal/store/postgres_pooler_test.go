package store

import (
	"errors"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// pooledFixture returns a fresh database whose URL leads through a PgBouncer with
// these settings.
func pooledFixture(t *testing.T, settings map[string]string) (*fixture, *testkit.PgBouncer) {
	t.Helper()
	f := &fixture{t: t, pg: testkit.Postgres(t), maxNodes: 2}
	pooler := testkit.StartPgBouncer(t, f.pg, settings)
	f.url = pooler.URL()
	return f, pooler
}

// Each client has a server connection of its own, as without a pooler.
func TestAPoolerInSessionModeServes(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"as PgBouncer is by default": {},
		// The names of prepared statements of an earlier client are taken.
		"without a reset query":         {"server_reset_query": ""},
		"with another reset query":      {"server_reset_query": "DEALLOCATE ALL"},
		"with a reset query for all":    {"server_reset_query_always": "1"},
		"that takes turns":              {"server_round_robin": "1"},
		"that ignores startup settings": {"ignore_startup_parameters": "lock_timeout,statement_timeout,search_path,options"},
		"that keeps few connections":    {"default_pool_size": "6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, _ := pooledFixture(t, settings)
			f.migrate()
			for i := range 2 { // the second gets the server connections of the first
				n := f.startNode()
				n.mustPublish("room", numbered("id", i), "x")
				if got := len(n.readAll("room")); got != i+1 {
					t.Errorf("%d messages", got)
				}
				p := n.logUnderTest.(*Postgres)
				for setting, want := range map[string]string{"lock_timeout": "2s", "statement_timeout": "10s", "enable_seqscan": "off", "application_name": "switchyard"} {
					var got string
					if err := p.repair.QueryRow(t.Context(), "SHOW "+setting).Scan(&got); err != nil || got != want {
						t.Errorf("%s is %q, want %s (%v)", setting, got, want, err)
					}
				}
				n.close()
			}
		})
	}
}

func TestAPoolerThatSwitchesIsRefused(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"transaction mode":                       {"pool_mode": "transaction"},
		"transaction mode with one connection":   {"pool_mode": "transaction", "default_pool_size": "1"},
		"transaction mode that takes turns":      {"pool_mode": "transaction", "server_round_robin": "1", "min_pool_size": "2"},
		"transaction mode that resets":           {"pool_mode": "transaction", "server_reset_query_always": "1"},
		"transaction mode that ignores settings": {"pool_mode": "transaction", "ignore_startup_parameters": "lock_timeout,statement_timeout"},
		"statement mode":                         {"pool_mode": "statement"},
		// No second connection can be had to find it out with.
		"transaction mode that resets for one client": {"pool_mode": "transaction", "server_reset_query_always": "1", "max_client_conn": "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, _ := pooledFixture(t, settings)
			direct := &fixture{t: t, url: f.pg.URL(), pg: f.pg}
			for verb, try := range map[string]func() error{
				"migrate": func() error { return Migrate(t.Context(), f.url) },
				"open":    func() error { direct.migrate(); _, err := f.openLog(); return err },
			} {
				err := try()
				if err == nil || !strings.Contains(err.Error(), "pool_mode = session") || !strings.Contains(err.Error(), "DATABASE_URL") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", verb, err)
				}
			}
		})
	}
}

// An operator changes the mode beneath a node. What it stores stays right, and
// its log says what to do.
func TestAPoolerThatBeginsToSwitchIsNoticed(t *testing.T) {
	t.Parallel()
	f, pooler := pooledFixture(t, map[string]string{"pool_mode": "session"})
	f.migrate()
	logs := new(testkit.Logs)
	n := f.startNode(func(c *Config) { c.AppendTimeout, c.Logger = time.Second, logs.Logger() })
	n.mustPublish("room", "1", "x")
	pooler.Set(f.pg, "pool_mode", "transaction")
	// The mode of a connection changes with its next transaction, and the writers
	// and readers begin to exchange server connections.
	testkit.Eventually(t, "the switch to be noticed", func() bool {
		n.append("room", "ann", "2", "x")
		n.append("another", "ann", "2", "x")
		_, _ = n.Commits(t.Context(), "")
		return logs.Count("pool_mode = session") > 0
	})
	pooler.Set(f.pg, "pool_mode", "session")
	testkit.EventuallyNil(t, "the node to recover", func() error { return n.publish("room", "ann", "3", "x").Err })
	n.readAll("room") // without holes
}

// A pooler that prepares the statements on every server connection hides a switch from
// the writers, but the parameters of another session are not theirs.
func TestNothingIsWrittenInTheSessionOfAnotherClient(t *testing.T) {
	t.Parallel()
	f, _ := pooledFixture(t, nil)
	f.migrate()
	w := &pgWriter{p: f.startNode().logUnderTest.(*Postgres)}
	defer w.close()
	batch := []*queuedPublication{{pub: publication("room", "1", "x")}}
	for name, use := range map[string]func() error{
		"a commit": func() error { _, _, err := w.commit(t.Context(), batch); return err },
		"a ping":   func() error { return w.ping(t.Context()) },
	} {
		if err := w.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.conn.PgConn().CustomData()[backendKey] = backendOf(w.conn) + 1
		if err := use(); !errors.Is(err, errPoolerSwitches) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := f.pg.Query("SELECT count(*) FROM messages"); n != "0" {
		t.Errorf("%s messages are stored", n)
	}
}

// URLs that were written for other programs.
func TestURLsWithOptionsOfThePoolerOrTheDriver(t *testing.T) {
	t.Parallel()
	f, _ := pooledFixture(t, nil)
	f.pg.Exec("CREATE SCHEMA app")
	f.url += "&search_path=app&default_query_exec_mode=simple_protocol&statement_cache_capacity=0"
	f.migrate()
	n := f.startNode()
	n.mustPublish("room", "1", "x")
	if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1, MaxBytes: 10}); err != nil {
		t.Error(err)
	}
	if got := f.pg.Query("SELECT count(*) FROM app.messages"); got != "1" {
		t.Errorf("%s messages in the schema of the URL", got)
	}
}
