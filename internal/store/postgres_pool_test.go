package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// readAtOnce makes many reads of each kind at once and returns their errors.
func readAtOnce(t *testing.T, n *node) error {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, 60)
	for i := range errs {
		wg.Go(func() {
			var err error
			switch i % 4 {
			case 0:
				_, err = n.Read(t.Context(), message.Range{Room: "room", Limit: 5, MaxBytes: 100})
			case 1:
				_, err = n.Commits(t.Context(), "")
			case 2:
				_, _, err = n.Heads(t.Context(), []message.Room{"room"})
			case 3:
				err = n.AppendBatch(t.Context(), []*message.Publication{{
					Draft: message.Draft{Room: "batches", ID: numbered("id", i)}, Opaque: make(chan struct{})}})
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// The limit of the role, of the database or of a pooler is below
// DATABASE_MAX_CONNS. No call fails for it, and the log says so once.
func TestANodeLivesWithFewerConnections(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T) *fixture{
		"the role's limit": func(t *testing.T) *fixture {
			f := asRole(t, "GRANT CREATE ON SCHEMA public TO $role", "ALTER ROLE $role CONNECTION LIMIT 5")
			f.migrate()
			return f
		},
		"the least that works": func(t *testing.T) *fixture {
			f := asRole(t, "GRANT CREATE ON SCHEMA public TO $role", "ALTER ROLE $role CONNECTION LIMIT 4")
			f.migrate()
			return f
		},
		"the database's limit": func(t *testing.T) *fixture {
			f := asRole(t, "GRANT CREATE ON SCHEMA public TO $role", "ALTER DATABASE $database CONNECTION LIMIT 5")
			f.migrate()
			return f
		},
		"the pooler's clients": func(t *testing.T) *fixture {
			f, _ := pooledFixture(t, map[string]string{"max_client_conn": "5"})
			f.migrate()
			return f
		},
		"the pooler's connections": func(t *testing.T) *fixture {
			f, _ := pooledFixture(t, map[string]string{"default_pool_size": "5"})
			f.migrate()
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, logs := prepare(t), new(testkit.Logs)
			n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
			n.mustPublish("room", "1", "x")
			for round := range 3 {
				if err := readAtOnce(t, n); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				n.mustPublish("room", numbered("then", round), "x")
			}
			if got := logs.Count("DATABASE_MAX_CONNS"); got != 1 {
				t.Errorf("the log names DATABASE_MAX_CONNS %d times:\n%s", got, logs)
			}
			if err := n.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Too few even for the writers.
func TestTooFewConnectionsToStartAreNamed(t *testing.T) {
	t.Parallel()
	f := asRole(t, "GRANT CREATE ON SCHEMA public TO $role")
	f.migrate()
	f.pg.Exec("ALTER ROLE app_" + f.pg.Database() + " CONNECTION LIMIT 1")
	_, err := f.openLog()
	if err == nil || !strings.Contains(err.Error(), "CONNECTION LIMIT") || !strings.Contains(err.Error(), "DATABASE_LANES") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// The limit of a pool falls with what it gets, while all permits are in use, and
// rises again.
func TestThePermitsOfAPoolFollowItsLimit(t *testing.T) {
	t.Parallel()
	p := newConnPool(nil, 3, nil, nil)
	take := func() bool {
		select {
		case <-p.permits:
			return true
		default:
			return false
		}
	}
	state := func() string { return fmt.Sprintf("limit %d, free %d, debt %d", p.max(), len(p.permits), p.debt) }
	take()
	take()
	p.lower(1)
	if got := state(); got != "limit 1, free 0, debt 1" {
		t.Errorf("lowered: %s", got)
	}
	p.raiseIfDue() // not yet
	p.leave()
	if got := state(); got != "limit 1, free 0, debt 0" || take() {
		t.Errorf("one of two came back: %s", got)
	}
	p.leave()
	if got := state(); got != "limit 1, free 1, debt 0" {
		t.Errorf("both came back: %s", got)
	}
	for range 3 {
		p.raiseAt = p.raiseAt.Add(-2 * raiseEvery)
		p.raiseIfDue()
	}
	if got := state(); got != "limit 3, free 3, debt 0" {
		t.Errorf("raised: %s", got)
	}
	p.lower(0)
	if got := state(); got != "limit 1, free 1, debt 0" {
		t.Errorf("at least one stays: %s", got)
	}
}
