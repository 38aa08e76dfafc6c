package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// mustDo fails the test on an error of the file system.
func mustDo(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Two processes on one file would each believe that it is alone.
func TestASQLiteFileIsLockedUnderEachOfItsNames(t *testing.T) {
	t.Parallel()
	f, dir := newSQLiteFixture(t), t.TempDir()
	n := f.startNode()
	epoch := n.mustPublish("room", "1", "x").Epoch
	working, err := os.Getwd()
	mustDo(t, err)
	relative, err := filepath.Rel(working, f.path())
	mustDo(t, err, os.Symlink(f.path(), dir+"/symlink"), os.Symlink("symlink", dir+"/chain"),
		os.Symlink(filepath.Dir(f.path()), dir+"/folder"), os.Link(f.path(), dir+"/hardlink"))
	names := map[string]string{
		"a symbolic link": dir + "/symlink", "a link to a link": dir + "/chain", "a relative path": relative,
		"a linked folder": dir + "/folder/" + filepath.Base(f.path()), "a hard link": dir + "/hardlink",
	}
	for what, path := range names {
		other := &fixture{t: t, url: "sqlite:" + path}
		for verb, err := range map[string]error{
			"open": func() error { _, err := other.openLog(); return err }(), "migrate": Migrate(t.Context(), other.url),
		} {
			if err == nil || !strings.Contains(err.Error(), "another process uses the file") {
				t.Errorf("%s by %s: %v", verb, what, err)
			}
		}
	}
	n.mustPublish("room", "2", "x")
	n.close()
	// A single process may use any name, except a hard link: the messages that a
	// killed process has left in the WAL would be missing under that name.
	for what, path := range names {
		other := &fixture{t: t, url: "sqlite:" + path}
		if what == "a hard link" {
			if _, err := other.openLog(); err == nil || !strings.Contains(err.Error(), "hard link") {
				t.Errorf("open by %s: %v", what, err)
			}
			continue
		}
		if got := other.openedEpoch(); got != epoch {
			t.Errorf("opening by %s began a new epoch", what)
		}
	}
	if got := f.openedEpoch(); got != epoch {
		t.Error("a hard link elsewhere began a new epoch")
	}
}

func TestALinkToASQLiteFileThatDoesNotExistYet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustDo(t, os.Mkdir(dir+"/data", 0o700), os.Symlink("data/log.db", dir+"/link"))
	f := &fixture{t: t, url: "sqlite:" + dir + "/link"}
	f.migrate()
	f.startNode().mustPublish("room", "1", "x")
	if _, err := (&fixture{t: t, url: "sqlite:" + dir + "/data/log.db"}).openLog(); err == nil {
		t.Error("the file is not locked under its own name")
	}
}

// sqliteModes returns the modes of a database's files.
func sqliteModes(t *testing.T, path string) string {
	t.Helper()
	var modes []string
	for _, suffix := range sqliteFileSuffixes {
		info, err := os.Stat(path + suffix)
		mustDo(t, err)
		modes = append(modes, fmt.Sprintf("%o", info.Mode().Perm()))
	}
	return strings.Join(modes, " ")
}

// The umask of tests is 022, with which SQLite would make files that every user
// of the machine can read.
func TestOnlyTheOwnerReadsASQLiteFile(t *testing.T) {
	t.Parallel()
	f := newSQLiteFixture(t)
	n := f.startNode()
	n.mustPublish("room", "1", "x")
	if got := sqliteModes(t, f.path()); got != "600 600 600 600" {
		t.Errorf("the modes of new files: %s", got)
	}
	// Copied while it runs, as a release before would have left it when killed.
	old := &fixture{t: t, url: "sqlite:" + filepath.Join(t.TempDir(), "old.db")}
	for _, suffix := range []string{"", walSuffix, lockSuffix} {
		testkit.CopyFile(t, f.path()+suffix, old.path()+suffix)
		mustDo(t, os.Chmod(old.path()+suffix, 0o644))
	}
	logs := new(testkit.Logs)
	node := old.startNode(func(c *Config) { c.Logger = logs.Logger() })
	if got := sqliteModes(t, old.path()); got != "600 600 600 600" {
		t.Errorf("the modes of files that all could read: %s", got)
	}
	if logs.Count("taken from other users") != 1 {
		t.Errorf("the log does not say so once: %s", logs)
	}
	if len(node.readAll("room")) != 1 {
		t.Error("the message of the WAL is missing")
	}
	node.close()
	mustDo(t, os.Chmod(old.path(), 0o640))
	node = old.startNode()
	node.mustPublish("room", "2", "x")
	if got := sqliteModes(t, old.path()); got != "640 640 640 600" {
		t.Errorf("the modes of a file that a group may read: %s", got)
	}
}

// An operator moves files beneath the service, each in turn. Until then every
// publish was acked; none of these messages may be lost.
func TestMovedSQLiteFilesLoseNothing(t *testing.T) {
	t.Parallel()
	older := newSQLiteFixture(t)
	older.startNode().close()
	for _, c := range []struct {
		name   string
		move   func(t *testing.T, path string)
		remedy func(t *testing.T, path string) // what the log says
	}{
		{"the database is renamed", func(t *testing.T, path string) { mustDo(t, os.Rename(path, path+".old")) }, useSavedCopy},
		{"the database is removed", func(t *testing.T, path string) { mustDo(t, os.Remove(path)) }, useSavedCopy},
		{"the database is replaced", func(t *testing.T, path string) {
			testkit.CopyFile(t, older.path(), path+".new")
			mustDo(t, os.Rename(path+".new", path))
		}, useSavedCopy},
		{"all files are removed", func(t *testing.T, path string) {
			for _, suffix := range sqliteFileSuffixes {
				mustDo(t, os.Remove(path+suffix))
			}
		}, useSavedCopy},
		{"the folder is renamed", func(t *testing.T, path string) {
			mustDo(t, os.Rename(filepath.Dir(path), filepath.Dir(path)+".old"))
		}, useSavedCopy},
		{"the folder is removed", func(t *testing.T, path string) { mustDo(t, os.RemoveAll(filepath.Dir(path))) }, useSavedCopy},
		{"the WAL is removed", func(t *testing.T, path string) { mustDo(t, os.Remove(path+walSuffix)) }, nil},
		{"the WAL is renamed", func(t *testing.T, path string) { mustDo(t, os.Rename(path+walSuffix, path+".old")) }, nil},
		{"the WAL is replaced", func(t *testing.T, path string) {
			testkit.CopyFile(t, path+walSuffix, path+".new")
			mustDo(t, os.Rename(path+".new", path+walSuffix))
		}, func(t *testing.T, path string) {
			if err := os.Remove(path + walSuffix); !errors.Is(err, os.ErrNotExist) {
				mustDo(t, err)
			}
		}},
		{"the shared memory is removed", func(t *testing.T, path string) { mustDo(t, os.Remove(path+shmSuffix)) }, nil},
		{"the lock file is removed", func(t *testing.T, path string) { mustDo(t, os.Remove(path+lockSuffix)) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, logs := &fixture{t: t, url: "sqlite:" + filepath.Join(t.TempDir(), "data", "log.db"), maxNodes: 1}, new(testkit.Logs)
			mustDo(t, os.Mkdir(filepath.Dir(f.path()), 0o700))
			f.migrate()
			n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
			acked := 0
			for acked < 50 && n.publish("room", "ann", numbered("before", acked), "x").Err == nil {
				acked++
			}
			c.move(t, f.path())
			testkit.Eventually(t, "the move to be noticed", func() bool {
				if n.publish("room", "ann", numbered("after", acked), "x").Err != nil {
					return true
				}
				acked++ // stored until then
				return false
			})
			if err := n.Check(); err == nil || !strings.Contains(err.Error(), f.path()) {
				t.Errorf("the health of the log: %v", err)
			}
			if err := n.publish("room", "ann", "late", "x").Err; !errors.Is(err, message.ErrUnavailable) {
				t.Errorf("a publish: %v", err)
			}
			if err := n.AppendBatch(t.Context(), []*message.Publication{{Draft: message.Draft{Room: "room", ID: "b"}}}); !errors.Is(err, message.ErrUnavailable) {
				t.Errorf("a batch: %v", err)
			}
			// Publishes fail first, and the line follows once the messages are saved.
			testkit.Eventually(t, "a line of errors", func() bool { return logs.Count("level=ERROR") > 0 })
			if got := logs.Count("level=ERROR"); got != 1 {
				t.Errorf("%d lines of errors, want 1:\n%s", got, logs)
			}
			if got := logs.Count("level=WARN"); got != 0 {
				t.Errorf("%d warnings:\n%s", got, logs)
			}
			n.close()
			if c.remedy != nil {
				c.remedy(t, f.path())
			}
			again := f.startNode()
			if got := len(again.readAll("room")); got != acked {
				t.Errorf("%d were acked and %d are stored", acked, got)
			}
			again.mustPublish("room", "then", "x")
		})
	}
}

// useSavedCopy does what the log says: it renames the saved copy. Until then
// nothing begins an empty log in its place.
func useSavedCopy(t *testing.T, path string) {
	t.Helper()
	saved := savedCopies(path)
	if len(saved) != 1 {
		t.Fatalf("the saved copies: %q", saved)
	}
	if info, err := os.Stat(saved[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the saved copy: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := Migrate(t.Context(), "sqlite:"+path); err == nil || !strings.Contains(err.Error(), saved[0]) {
			t.Errorf("a start without the copy: %v", err)
		}
	}
	mustDo(t, os.Rename(saved[0], path))
}

// A copy that overwrites the database in place keeps its inode.
func TestAnOverwrittenSQLiteFileIsNoticed(t *testing.T) {
	t.Parallel()
	older := newSQLiteFixture(t)
	older.startNode().close()
	f, logs := newSQLiteFixture(t), new(testkit.Logs)
	n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	// Fill pages, so that the change counter is ahead of the other file's.
	for i := range 3 {
		n.mustPublish("room", numbered("id", i), strings.Repeat("x", 100_000))
	}
	n.close()
	n = f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	testkit.CopyFile(t, older.path(), f.path())
	testkit.Eventually(t, "the overwritten file to be noticed", func() bool {
		err := n.Check()
		return err != nil && strings.Contains(err.Error(), "was overwritten")
	})
	if err := n.publish("room", "ann", "late", "x").Err; !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("a publish: %v", err)
	}
	// What was in both files at once may not be sound: then the log says so.
	err := n.Close(t.Context())
	if saved := len(savedCopies(f.path())); saved != 1 || err != nil && !strings.Contains(err.Error(), "copy the database") {
		t.Errorf("%d copies, %v", saved, err)
	}
	if !bytes.Equal(testkit.ReadFile(t, f.path()), testkit.ReadFile(t, older.path())) {
		t.Error("the service has written into the other file")
	}
	f.startNode().mustPublish("room", "then", "x")
}

// The operator has noticed, too, and puts the file back.
func TestASQLiteFileThatIsPutBackServesAgain(t *testing.T) {
	t.Parallel()
	f, logs := newSQLiteFixture(t), new(testkit.Logs)
	n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	epoch := n.mustPublish("room", "1", "x").Epoch
	mustDo(t, os.Rename(f.path(), f.path()+".old"))
	testkit.Eventually(t, "the loss to be noticed", func() bool { return n.Check() != nil })
	testkit.Eventually(t, "the copy", func() bool { return logs.Count("all messages are saved") == 1 })
	mustDo(t, os.Rename(f.path()+".old", f.path()))
	testkit.EventuallyNil(t, "the file to be found again", n.Check)
	if got := n.mustPublish("room", "2", "x"); got.Epoch != epoch || got.Seq != 2 {
		t.Errorf("afterwards: %+v", got)
	}
	if logs.Count("in their places again") != 1 {
		t.Errorf("the log: %s", logs)
	}
	n.close()
	if got := f.openedEpoch(); got != epoch {
		t.Error("a file that was put back began a new epoch")
	}
}

// SQLite would remove the WAL of a database that is not there.
func TestAWALWithoutItsDatabaseIsNotRemoved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	mustDo(t, os.WriteFile(path+walSuffix, []byte("frames"), 0o600))
	if err := Migrate(t.Context(), "sqlite:"+path); err == nil || !strings.Contains(err.Error(), path+walSuffix) {
		t.Errorf("migrate: %v", err)
	}
	if len(testkit.ReadFile(t, path+walSuffix)) == 0 {
		t.Error("the WAL is empty")
	}
}
