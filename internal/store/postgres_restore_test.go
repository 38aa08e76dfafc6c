package store

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestARestoreByTemplateBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.StartPostgres(t))
	f.pg.Exec("CREATE DATABASE live")
	f.url = f.pg.URLOf("live")
	f.migrate()
	first := f.openNode()
	first.start()
	old := first.mustPublish("room", "1", "x")
	first.close()
	f.pg.Exec("CREATE DATABASE earlier TEMPLATE live")
	n := f.startNode()
	if kept := n.mustPublish("room", "2", "x"); kept.Epoch != old.Epoch {
		t.Fatal("copying the database began a new epoch")
	}
	cursor := n.currentCursor()
	// The node keeps running while the older state replaces the newer one.
	f.pg.Exec("ALTER DATABASE live ALLOW_CONNECTIONS false",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'live'",
		"DROP DATABASE live WITH (FORCE)", "ALTER DATABASE earlier RENAME TO live")
	n.expectNewEpoch(old.Epoch, cursor, 2)
}

// expectNewEpoch publishes until the restored log stores the message, which must
// have this seq in another epoch than the old one.
func (n *node) expectNewEpoch(old message.Epoch, cursor message.Cursor, seq message.Seq) {
	n.t.Helper()
	var p *message.Publication
	testkit.EventuallyNil(n.t, "the restored log can be written", func() error {
		p = n.publish("room", "ann", "after the restore", "x")
		return p.Err
	})
	if p.Epoch == old || p.Epoch == "" || p.Seq != seq {
		n.t.Errorf("epoch was %s; after the restore: %+v", old, p)
	}
	var c message.Commits
	testkit.EventuallyNil(n.t, "the feed can be read", func() (err error) { // each connection was cut
		c, err = n.Commits(n.t.Context(), cursor)
		return err
	})
	if !c.Incomplete || c.Epoch != p.Epoch {
		n.t.Errorf("an old cursor in the feed of the new epoch: %+v", c)
	}
}

// A dump that is restored over the same database leaves the connections, the
// system identifier and the database's name as they are.
func TestADumpRestoredUnderARunningNodeBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	old := n.mustPublish("room", "1", "x")
	dump := f.runTool("pg_dump", nil, "--clean", "--if-exists")
	n.mustPublish("room", "2", "x")
	n.mustPublish("room", "3", "x")
	cursor := n.currentCursor()
	f.runTool("psql", dump, "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction")
	n.expectNewEpoch(old.Epoch, cursor, 2)
	if all := n.readAll("room"); len(all) != 2 || all[1].ID != "after the restore" {
		t.Errorf("stored are %v", all)
	}
}

// runTool runs one of PostgreSQL's own programs on the database.
func (f *fixture) runTool(program string, input []byte, args ...string) []byte {
	f.t.Helper()
	path, err := testkit.FindPostgresProgram(program)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.CommandContext(f.t.Context(), path, append(args, "-d", f.url)...)
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("%s: %v: %s", program, err, stderr.String())
	}
	return out
}

// The server's files are replaced by an older copy, with the same system,
// database, timeline and tables. Only a node that saw later WAL can notice.
func TestFilesRestoredUnderARunningNodeBeginANewEpoch(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	before := f.startNode()
	old := before.mustPublish("room", "1", "x")
	before.close()
	pg.Stop()
	copyTree(t, pg.DataDir(), pg.DataDir()+".earlier")
	pg.Start()
	n := f.startNode()
	n.mustPublish("room", "2", "x")
	cursor := n.currentCursor()
	flushed := pg.Query(`SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`)
	testkit.EventuallyNil(t, "a ping sees the WAL", func() error {
		if seen := fmt.Sprint(n.logUnderTest.(*Postgres).wal.load().position); seen < flushed {
			return fmt.Errorf("%s of %s", seen, flushed)
		}
		return nil
	})
	pg.Kill()
	copyTree(t, pg.DataDir()+".earlier", pg.DataDir())
	pg.Start()
	n.expectNewEpoch(old.Epoch, cursor, 2)
}

// WAL that is missing begins one new epoch, whatever number of connections find it
// missing, at once or later.
func TestMissingWALBeginsOneEpoch(t *testing.T) {
	t.Parallel()
	logs := new(testkit.Logs)
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	before := n.mustPublish("room", "1", "x").Epoch
	p := n.logUnderTest.(*Postgres)
	p.wal.raise(string(before), 1<<60) // as if that had been flushed, and was not replicated
	reconnect := func() {
		conn, err := pgx.ConnectConfig(t.Context(), p.conn.Copy())
		if err == nil {
			err = errors.Join(p.verify(t.Context(), conn), conn.Close(t.Context()))
		}
		if err != nil {
			t.Error(err)
		}
	}
	var connecting sync.WaitGroup
	for range 5 {
		connecting.Go(reconnect)
	}
	connecting.Wait()
	after := n.epoch()
	if after == before {
		t.Error("the epoch is the same though WAL is missing")
	}
	p.wal.raise(string(before), 1<<60) // a connection to the lost server answers late
	if p.wal.accept(string(before), serverIdentity{wal: 1 << 60}) {
		t.Error("the epoch that is over was accepted again")
	}
	reconnect()
	if got := n.epoch(); got != after {
		t.Errorf("the epoch %s was followed by %s", after, got)
	}
	if warnings := logs.Count("begins a new epoch"); warnings != 2 {
		t.Errorf("%d epochs began, want the first one and one more", warnings)
	}
}

func TestATrustedFailoverKeepsTheEpoch(t *testing.T) {
	t.Parallel()
	for _, trust := range []bool{true, false} {
		f := newPostgresFixture(t, testkit.Postgres(t))
		n := f.startNode(func(c *Config) { c.TrustFailover = trust })
		before := n.mustPublish("room", "1", "x")
		cursor, err := decodeFeedCursor(n.currentCursor())
		if err != nil {
			t.Fatal(err)
		}
		n.close()
		// As if the epoch had been written on the timeline before this one.
		f.pg.Exec(`UPDATE meta SET fingerprint = regexp_replace(fingerprint, '/[0-9A-F]{8}/', '/00000000/')`)
		cursor.origin = f.origin()
		n = f.startNode(func(c *Config) { c.TrustFailover = trust })
		after := n.mustPublish("room", "2", "x")
		// The other server may have given the same transaction ids to other batches.
		if c, err := n.Commits(t.Context(), cursor.encode()); err != nil || !c.Incomplete {
			t.Errorf("trust %v: a cursor of the server before: %+v, %v", trust, c, err)
		}
		if kept := after.Epoch == before.Epoch; kept != trust {
			t.Errorf("trust %v, epoch kept %v", trust, kept)
		}
		f.pg.Exec(`UPDATE meta SET fingerprint = '1' || fingerprint`)
		if other := f.startNode(func(c *Config) { c.TrustFailover = trust }); other.epoch() == after.Epoch {
			t.Errorf("trust %v: the epoch stays on another system", trust)
		}
	}
}
