package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestAWriterDisconnectedMidBatchLosesAndDuplicatesNothing(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
	n.mustPublish("room", "first", "x")
	var pubs []*message.Publication
	for round := range 3 {
		release := f.lockRoom("room")
		for i := range 50 {
			pubs = append(pubs, n.append("room", "", numbered(numbered("id", round), i), "x"))
		}
		f.waitForBlockedBackends(1)
		f.pg.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		release()
		for _, p := range pubs {
			wait(t, p)
		}
	}
	for i, p := range pubs {
		if p.Err != nil || p.Seq != message.Seq(i+2) {
			t.Fatalf("%d: %+v", i, p)
		}
	}
	if all := n.readAll("room"); len(all) != 151 {
		t.Errorf("%d are stored, want 151", len(all))
	}
}

// The connection breaks between COMMIT and its answer: the batch is tried again
// and finds its own messages.
func TestALostAnswerToCommit(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	lose := f.interceptCommits()
	n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
	n.mustPublish("room", "first", "x")
	lost := lose("room")
	p := n.mustPublish("room", "id", "x")
	requireFault(t, lost)
	if p.Seq != 2 || !p.Duplicate {
		t.Errorf("%+v", p)
	}
	if all := n.readAll("room"); len(all) != 2 {
		t.Errorf("%d are stored, want 2", len(all))
	}
}

func TestTheDatabaseStopsAndComesBack(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	acked := n.mustPublish("room", "acked", "x")
	pg.Kill()
	if p := n.publish("room", "ann", "during the outage", "x"); !errors.Is(p.Err, message.ErrUnavailable) {
		t.Errorf("while the database is down: %v", p.Err)
	}
	if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); err == nil {
		t.Error("a dead database can be read")
	}
	// As if the last success of each append worker was 5 s ago.
	for _, w := range workersOf(n.logUnderTest) {
		w.lastOK.Add(-int64(5 * time.Second))
	}
	testkit.EventuallyNil(t, "Check returns why the log cannot be written", func() error {
		if err := n.Check(); err == nil || !strings.Contains(err.Error(), "could not be written") {
			return fmt.Errorf("Check returns %w", err)
		}
		return nil
	})
	pg.Start()
	var p *message.Publication
	testkit.EventuallyNil(t, "the log recovers by itself", func() error {
		p = n.publish("room", "ann", "after", "x")
		return p.Err
	})
	if p.Epoch != acked.Epoch {
		t.Error("a crash alone began a new epoch")
	}
	if all := n.readAll("room"); all[0].ID != "acked" || all[len(all)-1].ID != "after" {
		t.Errorf("stored are %v", all)
	}
	testkit.EventuallyNil(t, "all append workers have recovered", n.Check)
}

// A server that hangs accepts connections and answers nothing.
func TestTheDatabaseHangs(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	n.mustPublish("room", "1", "x")
	pg.Pause()
	pubs := []*message.Publication{n.append("room", "ann", "2", "x"), n.append("other", "ann", "2", "x")}
	for _, p := range pubs {
		if wait(t, p); !errors.Is(p.Err, message.ErrUnavailable) {
			t.Errorf("while it hangs: %v", p.Err)
		}
	}
	if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); err == nil {
		t.Error("a database that hangs can be read")
	}
	pg.Resume()
	// The batch may have been stored or not. A resend is safe in both cases.
	testkit.EventuallyNil(t, "the log recovers by itself", func() error { return n.publish("room", "ann", "2", "x").Err })
	if all := n.readAll("room"); len(all) != 2 {
		t.Errorf("%d are stored, want 2", len(all))
	}
}

func TestWhichErrorsAreDataErrors(t *testing.T) {
	w := &pgWriter{}
	for state, want := range map[string]bool{
		"22P05": true, "22001": true, "23505": true, "23514": true, "44000": true, "54000": true, "P0001": true, "XX001": true,
		"08006": false, "40001": false, "40P01": false, "53300": false, "53100": false, "55P03": false, "57014": false,
		"57P01": false, "58030": false, "25006": false, "42501": false, "42P01": false, divisionByZero: false,
	} {
		err := fmt.Errorf("commit: %w", &pgconn.PgError{Code: state})
		if got := w.isDataError(err); got != want {
			t.Errorf("%s: data error %v, want %v", state, got, want)
		}
	}
	for _, err := range []error{io.EOF, os.ErrDeadlineExceeded, errors.New("conn closed")} {
		if w.isDataError(err) {
			t.Errorf("%v counts as a data error", err)
		}
	}
}
