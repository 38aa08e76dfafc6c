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
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// path of the database file.
func (w *world) path() string {
	path, _ := sqlitePath(w.url)
	return path
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	// In place, as cp does: the file keeps its inode.
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// opened returns the epoch of a database that is opened, read and closed.
func (w *world) opened() message.Epoch {
	w.t.Helper()
	n := w.node()
	defer n.close()
	return n.epoch()
}

func TestASQLiteFileThatWasRestoredBeginsANewEpoch(t *testing.T) {
	for name, restore := range map[string]func(t *testing.T, w *world, earlier string){
		"the older file copied back": func(t *testing.T, w *world, earlier string) {
			copyFile(t, earlier+"/db", w.path())
		},
		"the older folder moved in its place": func(t *testing.T, w *world, earlier string) {
			// Moved aside first: a file system may give a freed inode again.
			if err := os.Rename(w.path(), w.path()+".aside"); err != nil {
				t.Fatal(err)
			}
			copyTree(t, earlier+"/db", w.path())
			copyTree(t, earlier+"/lock", w.path()+".lock")
		},
		"without its side file": func(t *testing.T, w *world, _ string) {
			if err := os.Remove(w.path() + ".lock"); err != nil {
				t.Fatal(err)
			}
		},
		"with a side file that was cut short": func(t *testing.T, w *world, _ string) {
			if err := os.Truncate(w.path()+".lock", 20); err != nil {
				t.Fatal(err)
			}
		},
		"copied elsewhere": func(t *testing.T, w *world, _ string) {
			to := filepath.Join(t.TempDir(), "copy.db")
			copyFile(t, w.path(), to)
			w.url = "sqlite:" + to
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, earlier := sqliteWorld(t), t.TempDir()
			n := w.node()
			n.stored("room", "1", "x")
			n.close()
			copyTree(t, w.path(), earlier+"/db")
			copyTree(t, w.path()+".lock", earlier+"/lock")
			n = w.node()
			old := n.stored("room", "2", "x").Epoch
			n.close()
			if kept := w.opened(); kept != old {
				t.Fatal("closing and opening began a new epoch")
			}
			restore(t, w, earlier)
			n = w.node()
			cursor, err := n.Commits(t.Context(), 1)
			if err != nil || !cursor.Lost {
				t.Errorf("an old cursor: %+v, %v", cursor, err)
			}
			after := n.stored("room", "3", "x")
			if after.Epoch == old {
				t.Error("the epoch is the old one")
			}
			n.close()
			if again := w.opened(); again != after.Epoch {
				t.Error("opened again, the epoch changed once more")
			}
		})
	}
}

func TestTheFeedOfANewEpochMissesNothing(t *testing.T) {
	w := sqliteWorld(t)
	n := w.node()
	start, err := n.Commits(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	n.stored("room", "1", "x")
	if c, err := n.Commits(t.Context(), start.Next); err != nil || len(c.Heads) != 1 || c.Lost {
		t.Errorf("the very first commit: %+v, %v", c, err)
	}
}

func TestASecondProcessOnASQLiteFileIsRefused(t *testing.T) {
	w := sqliteWorld(t)
	n := w.node()
	for what, err := range map[string]error{
		"open": func() error { _, err := w.open(); return err }(), "migrate": Migrate(t.Context(), w.url),
	} {
		if err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), "DATABASE_URL") {
			t.Errorf("%s: %v", what, err)
		}
	}
	n.stored("room", "1", "x")
	n.close()
	w.node().stored("room", "2", "x")
}

// asWriter makes this test binary a process that writes until it is killed.
const asWriter = "SWITCHYARD_STORE_WRITER"

func TestAKilledProcessLosesNothingItAcked(t *testing.T) {
	if url := os.Getenv(asWriter); url != "" {
		n := (&world{t: t, url: url}).node()
		for i := 1; ; i++ {
			p := n.stored("room", numbered("id", i), "x")
			fmt.Fprintf(os.Stderr, "acked %d %s\n", p.Seq, p.Epoch)
		}
	}
	w := sqliteWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim, err := testkit.Start(testkit.Program{
		Path: self, Args: []string{"-test.run", t.Name() + "$"}, Env: []string{asWriter + "=" + w.url}})
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.WaitOutput(t.Context(), "acked 100 "); err != nil {
		t.Fatal(err)
	}
	if err := victim.Stop(syscall.SIGKILL, patience); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(victim.Output()), "\n")
	var acked int
	var epoch message.Epoch
	if _, err := fmt.Sscanf(lines[len(lines)-1], "acked %d %s", &acked, &epoch); err != nil {
		t.Fatalf("%q: %v", lines[len(lines)-1], err)
	}
	n := w.node() // the lock died with its holder
	if all := n.all("room"); len(all) < acked {
		t.Errorf("%d were acked and %d are stored", acked, len(all))
	}
	if n.epoch() != epoch {
		t.Error("a crash alone began a new epoch")
	}
}

func TestSQLiteURLsThatLeadNowhere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/text", []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"sqlite:":                 "looks like sqlite:switchyard.db",
		"postgres://x":            "looks like sqlite:switchyard.db",
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
		t.Error("a refused open made a file")
	}
	if err := Migrate(t.Context(), "sqlite:"+dir+"/none/db"); err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("migrate in a folder that is not there: %v", err)
	}
	if err := Migrate(t.Context(), "sqlite:"+dir); err == nil || !strings.Contains(err.Error(), "name a file") {
		t.Errorf("migrate a folder: %v", err)
	}
	if _, err := os.Stat(dir + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a lock was left beside a folder")
	}
}

// Somebody's sqlite3 shell sits in the middle of a transaction.
func TestAnotherProgramHoldsTheSQLiteFile(t *testing.T) {
	w := sqliteWorld(t)
	n := w.node(func(c *Config) { c.AppendTimeout = 2 * time.Second })
	n.stored("room", "1", "x")
	db, err := sql.Open("sqlite", sqliteURI(w.path(), "rw", "_txlock=immediate"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if p := n.publish("room", "ann", "2", "x"); !errors.Is(p.Err, message.ErrUnavailable) {
		t.Errorf("while the file is held: %v", p.Err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the answer took %v", took)
	}
	if len(n.all("room")) != 1 {
		t.Error("readers see what was not committed")
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if p := n.stored("room", "2", "x"); p.Seq != 2 {
		t.Errorf("afterwards: %+v", p)
	}
}
