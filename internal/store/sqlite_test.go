package store

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// path returns the path of the database file.
func (f *fixture) path() string {
	path, _ := sqlitePath(f.url)
	return path
}

// openedEpoch opens the log, reads its epoch, and closes it.
func (f *fixture) openedEpoch() message.Epoch {
	f.t.Helper()
	n := f.startNode()
	defer n.close()
	return n.epoch()
}

func TestARestoredSQLiteFileBeginsANewEpoch(t *testing.T) {
	for name, restore := range map[string]func(t *testing.T, f *fixture, earlier string){
		"the older file copied back": func(t *testing.T, f *fixture, earlier string) {
			testkit.CopyFile(t, earlier+"/db", f.path())
		},
		"the older folder moved in its place": func(t *testing.T, f *fixture, earlier string) {
			// Moved aside first, since a file system may reuse a freed inode.
			if err := os.Rename(f.path(), f.path()+".aside"); err != nil {
				t.Fatal(err)
			}
			copyTree(t, earlier+"/db", f.path())
			copyTree(t, earlier+"/lock", f.path()+".lock")
		},
		"without its lock file": func(t *testing.T, f *fixture, _ string) {
			if err := os.Remove(f.path() + ".lock"); err != nil {
				t.Fatal(err)
			}
		},
		"with a truncated lock file": func(t *testing.T, f *fixture, _ string) {
			if err := os.Truncate(f.path()+".lock", 20); err != nil {
				t.Fatal(err)
			}
		},
		"copied elsewhere": func(t *testing.T, f *fixture, _ string) {
			to := filepath.Join(t.TempDir(), "copy.db")
			testkit.CopyFile(t, f.path(), to)
			f.url = "sqlite:" + to
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, earlier := newSQLiteFixture(t), t.TempDir()
			n := f.startNode()
			n.mustPublish("room", "1", "x")
			n.close()
			copyTree(t, f.path(), earlier+"/db")
			copyTree(t, f.path()+".lock", earlier+"/lock")
			n = f.startNode()
			old := n.mustPublish("room", "2", "x").Epoch
			n.close()
			if kept := f.openedEpoch(); kept != old {
				t.Fatal("closing and opening began a new epoch")
			}
			restore(t, f, earlier)
			n = f.startNode()
			cursor, err := n.Commits(t.Context(), "1")
			if err != nil || !cursor.Incomplete {
				t.Errorf("an old cursor: %+v, %v", cursor, err)
			}
			after := n.mustPublish("room", "3", "x")
			if after.Epoch == old {
				t.Error("the epoch did not change")
			}
			n.close()
			if again := f.openedEpoch(); again != after.Epoch {
				t.Error("the epoch changed again at the next opening")
			}
		})
	}
}

func TestTheFeedOfANewEpochMissesNothing(t *testing.T) {
	t.Parallel()
	f := newSQLiteFixture(t)
	n := f.startNode()
	start, err := n.Commits(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	n.mustPublish("room", "1", "x")
	if c, err := n.Commits(t.Context(), start.Next); err != nil || len(c.Heads) != 1 || c.Incomplete {
		t.Errorf("the very first commit: %+v, %v", c, err)
	}
}

func TestASecondProcessOnASQLiteFileIsRefused(t *testing.T) {
	t.Parallel()
	f := newSQLiteFixture(t)
	n := f.startNode()
	for what, err := range map[string]error{
		"open": func() error { _, err := f.openLog(); return err }(), "migrate": Migrate(t.Context(), f.url),
	} {
		if err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), "DATABASE_URL") {
			t.Errorf("%s: %v", what, err)
		}
	}
	n.mustPublish("room", "1", "x")
	n.close()
	f.startNode().mustPublish("room", "2", "x")
}

// writerURLEnv is set in a process of this test binary that writes to its URL
// until it is killed.
const writerURLEnv = "SWITCHYARD_STORE_WRITER"

func TestAKilledProcessLosesNothingItAcked(t *testing.T) {
	t.Parallel()
	if url := os.Getenv(writerURLEnv); url != "" {
		n := (&fixture{t: t, url: url}).startNode()
		for i := 1; ; i++ {
			p := n.mustPublish("room", numbered("id", i), "x")
			fmt.Fprintf(os.Stderr, "acked %d %s\n", p.Seq, p.Epoch)
		}
	}
	f := newSQLiteFixture(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child, err := testkit.Start(testkit.Program{
		Path: self, Args: []string{"-test.run", t.Name() + "$"}, Env: []string{writerURLEnv + "=" + f.url}})
	if err != nil {
		t.Fatal(err)
	}
	if err := child.WaitOutput(t.Context(), "acked 100 "); err != nil {
		t.Fatal(err)
	}
	if err := child.Stop(syscall.SIGKILL, testkit.Timeout); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(child.Output()), "\n")
	var acked int
	var epoch message.Epoch
	if _, err := fmt.Sscanf(lines[len(lines)-1], "acked %d %s", &acked, &epoch); err != nil {
		t.Fatalf("%q: %v", lines[len(lines)-1], err)
	}
	n := f.startNode() // the lock has ended with its process
	if all := n.readAll("room"); len(all) < acked {
		t.Errorf("%d were acked and %d are stored", acked, len(all))
	}
	if n.epoch() != epoch {
		t.Error("a crash alone began a new epoch")
	}
}

func TestUnusableSQLiteURLsAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/text", []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"sqlite:":                 "must look like sqlite:switchyard.db",
		"postgres://x":            "must look like sqlite:switchyard.db",
		"sqlite:" + dir + "/no":   "migrate",
		"sqlite:" + dir + "/text": "cannot be used",
		"sqlite:" + dir:           "name a file",
	} {
		_, err := OpenSQLite(t.Context(), Config{URL: url})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "DATABASE_URL") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := os.Stat(dir + "/no"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a refused open created a file")
	}
	if err := Migrate(t.Context(), "sqlite:"+dir+"/none/db"); err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("migrate in a missing folder: %v", err)
	}
	if err := Migrate(t.Context(), "sqlite:"+dir); err == nil || !strings.Contains(err.Error(), "name a file") {
		t.Errorf("migrate a folder: %v", err)
	}
	if _, err := os.Stat(dir + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a lock was left beside a folder")
	}
}

// A power failure must lose no acked message, so each commit is flushed. No test
// can cut the power, so this one reads the setting of the connection that
// commits.
func TestTheSQLiteWriterFlushesEachCommit(t *testing.T) {
	t.Parallel()
	n := newSQLiteFixture(t).startNode()
	n.mustPublish("room", "1", "x")
	var synchronous int
	var journal string
	write := n.logUnderTest.(*SQLite).write
	if err := write.QueryRow(`PRAGMA synchronous`).Scan(&synchronous); err != nil {
		t.Fatal(err)
	}
	if err := write.QueryRow(`PRAGMA journal_mode`).Scan(&journal); err != nil {
		t.Fatal(err)
	}
	const full = 2 // sqlite.org/pragma.html#pragma_synchronous
	if synchronous != full || journal != "wal" {
		t.Errorf("synchronous is %d and the journal mode %s, want %d and wal", synchronous, journal, full)
	}
}

// A reader keeps an old state open while much is stored, so that the WAL grows. It is
// small again soon after the reader has ended.
func TestTheWALOfSQLiteShrinksAgain(t *testing.T) {
	t.Parallel()
	f := newSQLiteFixture(t)
	n := f.startNode()
	n.mustPublish("room", "0", "x")
	db, err := sql.Open("sqlite", sqliteURI(f.path(), ""))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	reader, err := db.Begin()
	if err == nil {
		err = reader.QueryRow(`SELECT count(*) FROM messages`).Scan(new(int))
	}
	if err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		info, err := os.Stat(f.path() + walSuffix)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	large := strings.Repeat("x", 1<<20)
	for i := range 10 {
		n.mustPublish("room", numbered("large", i), large)
	}
	if size() < 9<<20 {
		t.Fatalf("the WAL has %d bytes only", size())
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		n.mustPublish("room", numbered("small", i), "x")
	}
	if size() > 8<<20 {
		t.Errorf("the WAL has %d bytes after the reader has ended", size())
	}
}

// A sqlite3 shell has a transaction open.
func TestAnotherProgramLocksTheSQLiteFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSQLiteFixture(t)
		n := f.startNode(func(c *Config) { c.AppendTimeout = hangTimeout })
		n.mustPublish("room", "1", "x")
		db, err := sql.Open("sqlite", sqliteURI(f.path(), "_txlock=immediate"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		expectUnavailable(t, "a publish", hangAnswer, func() error { return n.publish("room", "ann", "2", "x").Err })
		expectUnavailable(t, "a publish after a failed one", hangAnswer, func() error { return n.publish("room", "ann", "2", "x").Err })
		began := time.Now()
		if len(n.readAll("room")) != 1 {
			t.Error("readers see messages that were not committed")
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a reader waited %v for the writer", waited)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if p := n.mustPublish("room", "2", "x"); p.Seq != 2 {
			t.Errorf("afterwards: %+v", p)
		}
	})
}

func TestTheLockFileKeepsTheDatabaseState(t *testing.T) {
	lock, err := lockSQLite(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.close()
	if got := lock.read(); got != (databaseState{}) {
		t.Errorf("a new lock file has the state %+v", got)
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
