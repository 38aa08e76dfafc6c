package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestWhichErrorsAreDataErrors(t *testing.T) {
	w := &pgWriter{}
	for state, want := range map[string]bool{
		"22P05": true, "22001": true, "23505": true, "23514": true, "44000": true, "54000": true, "P0001": true, "XX001": true,
		"08006": false, "40001": false, "40P01": false, "53300": false, "53100": false, "55P03": false, "57014": false,
		"57P01": false, "58030": false, "25006": false, "42501": false, "42P01": false, divisionByZero: false,
	} {
		err := fmt.Errorf("commit: %w", &pgconn.PgError{Code: state})
		if got := w.isDataError(err); got != want {
			t.Errorf("%s: guilty %v, want %v", state, got, want)
		}
	}
	for _, err := range []error{io.EOF, os.ErrDeadlineExceeded, errors.New("conn closed")} {
		if w.isDataError(err) {
			t.Errorf("%v is blamed on the message", err)
		}
	}
}

func TestSQLitePathsInURLs(t *testing.T) {
	for url, want := range map[string]string{
		"sqlite:switchyard.db": "switchyard.db", "sqlite:///data/x.db": "/data/x.db", "sqlite:/data/x.db": "/data/x.db",
		"sqlite://x.db": "x.db", "sqlite:": "", "postgres://x": "-", "postgresql://x": "-",
	} {
		path, ok := sqlitePath(url)
		if !ok {
			path = "-"
		}
		if path != want {
			t.Errorf("%s is %q, want %q", url, path, want)
		}
	}
}

func TestTheLockFileKeepsTheDatabaseState(t *testing.T) {
	lock, err := lockSQLite(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.close()
	if got := lock.read(); got != (databaseState{}) {
		t.Errorf("an empty one holds %+v", got)
	}
	for _, state := range []databaseState{{"0123456789abcdef", 1 << 62, 1 << 63}, {"fedcba9876543210", 1, 2}} {
		if err := lock.write(state); err != nil {
			t.Fatal(err)
		}
		if got := lock.read(); got != state {
			t.Errorf("wrote %+v, read %+v", state, got)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	c := Config{}.withDefaults()
	if c.AppendWorkers != 2 || c.MaxConns != 12 || c.AppendTimeout != 5*time.Second || c.IDWindow != 10*time.Minute || c.Logger == nil {
		t.Errorf("%+v", c)
	}
	if err := c.validate(); err != nil {
		t.Error(err)
	}
	if c := (Config{AppendWorkers: 20}).withDefaults(); c.validate() != nil {
		t.Errorf("20 lanes get %d connections", c.MaxConns)
	}
}

func TestOneNodePrunesAtATime(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("room", "old", "x")
	f.pg.Exec(`UPDATE message_ids SET at = at - interval '1 hour'`)
	left := func() string { return f.pg.Query(`SELECT count(*) FROM message_ids`) }
	other, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, pruneLock); err != nil {
		t.Fatal(err)
	}
	if err := n.prune(t.Context()); err != nil || left() != "1" {
		t.Errorf("while another prunes: %s left, %v", left(), err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.prune(t.Context()); err != nil || left() != "0" {
		t.Errorf("afterwards: %s left, %v", left(), err)
	}
}

func TestPruningGoesInSmallSteps(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	f.pg.Exec(fmt.Sprintf(`INSERT INTO message_ids SELECT 1, '', g::text, g, now() - interval '1 hour', '' FROM generate_series(1, %d) g`, 2*pruneRows+7),
		fmt.Sprintf(`INSERT INTO commits SELECT g::text::xid8, '{}', '{}', now() - interval '1 hour' FROM generate_series(1, %d) g`, pruneRows+7))
	if err := n.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.pg.Query(`SELECT (SELECT count(*) FROM message_ids), (SELECT count(*) FROM commits), feed_floor FROM meta`); !strings.HasPrefix(got, "0|0|") ||
		got < fmt.Sprintf("0|0|%d", pruneRows+8) {
		t.Errorf("left are %s", got)
	}
}

// A machine that hangs takes connections and answers nothing.
func TestTheDatabaseHangs(t *testing.T) {
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	n.mustPublish("room", "1", "x")
	pg.Pause()
	began := time.Now()
	pubs := []*message.Publication{n.append("room", "ann", "2", "x"), n.append("other", "ann", "2", "x")}
	for _, p := range pubs {
		if wait(t, p); !errors.Is(p.Err, message.ErrUnavailable) {
			t.Errorf("while it hangs: %v", p.Err)
		}
	}
	if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); err == nil {
		t.Error("a database that hangs can be read")
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the answers took %v", took)
	}
	pg.Resume()
	// The batch that hung was stored or not: its resend tells, and is safe.
	eventually(t, "the log comes back by itself", func() error { return n.publish("room", "ann", "2", "x").Err })
	if all := n.readAll("room"); len(all) != 2 {
		t.Errorf("%d are stored, want 2", len(all))
	}
}
