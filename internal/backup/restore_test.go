package backup

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A follower is a client in a room that remembers what it was told.
type follower struct {
	mu       sync.Mutex
	gaps     []client.Gap
	messages []message.Message
}

func (w *fixture) follow(room message.Room) *follower {
	w.t.Helper()
	f := new(follower)
	c := w.client(client.Options{})
	_, err := c.Join(w.t.Context(), room, client.Start(), client.Handler{
		Message: func(m message.Message) { f.mu.Lock(); defer f.mu.Unlock(); f.messages = append(f.messages, m) },
		Gap:     func(g client.Gap) { f.mu.Lock(); defer f.mu.Unlock(); f.gaps = append(f.gaps, g) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (f *follower) seen() (gaps []client.Gap, messages []message.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append(gaps, f.gaps...), append(messages, f.messages...)
}

// allMessages lists the messages in order.
func (w *fixture) allMessages() string { w.t.Helper(); return w.listMessages("true") }

// committedBefore lists those whose transaction was committed before a moment. A
// restored server knows that of its own transactions only.
func (w *fixture) committedBefore(before time.Time) string {
	w.t.Helper()
	return w.listMessages("pg_xact_commit_timestamp(m.xmin) < '" + before.Format(time.RFC3339Nano) + "'")
}

func (w *fixture) listMessages(where string) string {
	w.t.Helper()
	return w.pg.Query(`SELECT r.name || ' ' || m.seq || ' ' || m.id FROM messages m JOIN rooms r ON r.id = m.room_id
		WHERE r.name NOT LIKE '\_%' AND ` + where + ` ORDER BY r.name COLLATE "C", m.seq`)
}

// betweenCommits returns a moment between two commits, near the middle of them
// all: in the longest pause there, as commits are stamped before they are
// ordered.
func (w *fixture) betweenCommits() time.Time {
	w.t.Helper()
	answer := w.pg.Query(`WITH c AS (SELECT DISTINCT pg_xact_commit_timestamp(m.xmin) AS at FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name IN ('lobby', 'yard')),
		n AS (SELECT at, lead(at) OVER (ORDER BY at) AS next, row_number() OVER (ORDER BY at) AS i, count(*) OVER () AS n FROM c)
		SELECT to_char((at + (next - at) / 2) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM n WHERE i BETWEEN n / 3 AND 2 * n / 3 ORDER BY next - at DESC LIMIT 1`)
	at, err := time.Parse(time.RFC3339Nano, answer)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// The drill of the issue in small: a backup, people publish on, the primary's
// disk is gone; what is brought back is exactly what was committed before the
// moment asked for, and whoever had seen more is told so.
func TestARestoreBringsBackExactlyWhatWasCommitted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.startNode()
	c := w.client(client.Options{})
	publish(t, c, "lobby", 30)
	w.createBackup()
	f := w.follow("lobby")
	for range 4 {
		publish(t, c, "lobby", 15)
		publish(t, c, "yard", 15)
	}
	acks := publish(t, c, "lobby", 1)
	last := acks[0]
	until(t, "the follower has all", func() bool { _, m := f.seen(); return len(m) == int(last.Seq) })
	to := w.betweenCommits()
	want := w.committedBefore(to)
	w.switchWAL()

	w.pg.Stop()
	if err := os.RemoveAll(w.pg.DataDir()); err != nil {
		t.Fatal(err)
	}
	out, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.allMessages(); got != want || strings.Count(got, "\n") < 20 {
		t.Errorf("restored to %v:\n%s\nwant\n%s", to, got, want)
	}
	if !w.stack.apps["app_blue"] || out.LastCommit == "" || out.Log.Messages == 0 {
		t.Errorf("%+v; services %v", out, w.stack.apps)
	}
	var gap client.Gap
	until(t, "the follower is told", func() bool {
		gaps, _ := f.seen()
		if len(gaps) > 0 {
			gap = gaps[0]
		}
		return len(gaps) > 0
	})
	head := message.Seq(strings.Count(want, "lobby "))
	if gap.Reason != "epoch" || gap.Epoch == last.Epoch || gap.From != 1 || gap.To != head {
		t.Errorf("gap %+v, want 1 to %d of another epoch than %s", gap, head, last.Epoch)
	}
	next := publish(t, c, "lobby", 1)[0]
	if next.Epoch != gap.Epoch || next.Seq != head+1 {
		t.Errorf("the first publish afterwards: %+v", next)
	}
	until(t, "the follower gets it", func() bool {
		_, m := f.seen()
		return m[len(m)-1].Epoch == next.Epoch && m[len(m)-1].Seq == next.Seq
	})
	w.restoreAgain(to, c)
}

// restoreAgain: the new life has an archive of its own, a second restore begins
// from the same backup, and what came after the first one is there with it.
func (w *fixture) restoreAgain(to time.Time, c *client.Client) {
	t := w.t
	t.Helper()
	publish(t, c, "yard", 3)
	w.switchWAL()
	before := w.pg.Query("SELECT epoch FROM meta")
	all := w.allMessages()
	if _, err := w.repository.Verify(t.Context(), ""); err != nil {
		t.Errorf("verify over two timelines: %v", err)
	}
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) {
		t.Errorf("without the word, onto a live database: %v", err)
	}
	if now := w.allMessages(); now != all || !w.pg.Running() {
		t.Error("a refused restore changed something")
	}
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if got := w.allMessages(); got != all {
		t.Errorf("after the second restore\n%s\nwant\n%s", got, all)
	}
	publish(t, c, "yard", 1)
	if now := w.pg.Query("SELECT epoch FROM meta"); now == before {
		t.Error("the second restore kept the epoch")
	}
	if left, _ := filepath.Glob(filepath.Dir(w.pg.DataDir()) + "/.*re*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Whatever can't be done is one line, and what is there goes on as before.
func TestAFailedRestoreChangesNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.startNode()
	c := w.client(client.Options{})
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err == nil || !strings.Contains(err.Error(), "there is no backup in") {
		t.Errorf("without a backup: %v", err)
	}
	publish(t, c, "lobby", 3)
	early := time.Now()
	w.switchWAL()
	s := w.createBackup()
	publish(t, c, "lobby", 3)
	w.pg.Exec("CREATE TABLE filler AS SELECT g, repeat(md5(g::text), 20) AS x FROM generate_series(1, 4000) g")
	name := w.pg.Query("SELECT pg_walfile_name(pg_current_wal_lsn())") + gz
	segment := filepath.Join(w.stack.walDir, name)
	w.switchWAL()
	publish(t, c, "lobby", 3)
	to := w.betweenCommitsAfter(s.Consistent)
	w.switchWAL()
	all, epoch := w.allMessages(), w.pg.Query("SELECT epoch FROM meta")
	for _, tt := range []struct {
		name, says string
		request    RestoreRequest
		damage     func(t *testing.T)
	}{
		{"a time to come", "lies in the future", RestoreRequest{To: time.Now().Add(time.Hour)}, nil},
		{"a time before any backup", "is before the oldest backup, " + s.Name, RestoreRequest{To: early}, nil},
		{"a backup that began later", "is before the backup " + s.Name, RestoreRequest{To: early, Set: s.Name}, nil},
		{"a backup that is none", `there is no backup "nightly"`, RestoreRequest{Set: "nightly"}, nil},
		{"a time that the archive does not reach", "the archive ends with the commit at", RestoreRequest{To: time.Now()}, nil},
		{"a timeline that nobody began", "timeline 7", RestoreRequest{Timeline: 7}, nil},
		{"a corrupt segment on the way", name + " is corrupt", RestoreRequest{To: to}, func(t *testing.T) { corruptRecord(t, segment) }},
		{"a segment that is missing on the way", strings.TrimSuffix(name, gz) + " is missing", RestoreRequest{To: to}, func(t *testing.T) { removeFile(t, segment) }},
		{"a corrupt segment of an archive asked for whole", name + " is corrupt", RestoreRequest{}, func(t *testing.T) { flipByte(t, segment, 3000) }},
		{"a base backup cut short", "is cut short", RestoreRequest{}, func(t *testing.T) { truncateFile(t, s.path(baseFile), 1000) }},
		{"a disk that fills up meanwhile", "base.tar.gz: sh: cat: ", RestoreRequest{}, func(*testing.T) { w.stack.beforeRun = fillDiskOnUnpack }},
		{"a bench that can't be", "the scratch server can't start", RestoreRequest{}, func(t *testing.T) {
			w.stack.beforeRun = func(service string, p *Program) error {
				if service == "bench" && p.Args[0] == "pg_ctl" {
					p.Args = append(p.Args, "--options=-c shared_buffers=nonsense")
				}
				return nil
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undo := []func(){preserve(t, segment), preserve(t, s.path(baseFile)), func() { w.stack.beforeRun = nil }}
			if tt.damage != nil {
				tt.damage(t)
			}
			tt.request.Database, tt.request.Replace = true, true
			_, err := w.repository.Restore(t.Context(), tt.request)
			for _, f := range undo {
				f()
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line that says %q", err, tt.says)
			}
			if !w.pg.Running() || !w.stack.apps["app_blue"] || w.allMessages() != all {
				t.Error("what was there was touched")
			}
		})
	}
	t.Run("a restored server that does not start", func(t *testing.T) {
		w.stack.failStarts(PostgresService, 1)
		_, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
		if err == nil || !strings.Contains(err.Error(), "the restored server does not start, and what was there before is back: no such luck") {
			t.Errorf("error %v", err)
		}
		if !w.pg.Running() || !w.stack.apps["app_blue"] || w.allMessages() != all || w.pg.Query("SELECT epoch FROM meta") != epoch {
			t.Error("what was there before is not back")
		}
		w.expectOneTimeline(all)
	})
	t.Run("a restore that breaks off when its timeline has begun", func(t *testing.T) {
		w.stack.beforeRun = func(service string, p *Program) error {
			if service == "bench" && strings.Contains(strings.Join(p.Args, " "), "UPDATE meta") {
				return errors.New("killed")
			}
			return nil
		}
		_, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
		w.stack.beforeRun = nil
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("error %v", err)
		}
		w.expectOneTimeline(all)
		w.switchWAL()
		if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err != nil {
			t.Fatal(err)
		}
		if got := w.allMessages(); got != all {
			t.Errorf("all that the archive has, after restores that failed:\n%s\nwant\n%s", got, all)
		}
		if begun, _ := filepath.Glob(filepath.Join(w.stack.walDir, "00000002.history*")); len(begun) != 1 {
			t.Errorf("the archive knows nothing of the new life: %v", begun)
		}
	})
}

// expectOneTimeline fails when the archive has another timeline than the first, or
// the database something else than all.
func (w *fixture) expectOneTimeline(all string) {
	w.t.Helper()
	if begun, _ := filepath.Glob(filepath.Join(w.stack.walDir, "00000002*")); len(begun) > 0 || w.allMessages() != all {
		w.t.Errorf("a restore that failed left a life of its own: %v", begun)
	}
	if left, _ := filepath.Glob(filepath.Join(w.stack.walDir, ".*")); len(left) > 0 {
		w.t.Errorf("left in the archive: %v", left)
	}
}

// betweenCommitsAfter returns a moment before the last three commits.
func (w *fixture) betweenCommitsAfter(after time.Time) time.Time {
	w.t.Helper()
	answer := w.pg.Query(`WITH c AS (SELECT DISTINCT pg_xact_commit_timestamp(m.xmin) AS at FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'lobby'),
		n AS (SELECT at, lag(at) OVER (ORDER BY at) AS previous FROM c ORDER BY at DESC LIMIT 2)
		SELECT to_char((previous + (at - previous) / 2) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM n ORDER BY at LIMIT 1`)
	at, err := time.Parse(time.RFC3339Nano, answer)
	if err != nil || at.Before(after) {
		w.t.Fatalf("%v: %v", at, err)
	}
	return at
}

// A restore that was killed while it changed the places of the data goes on
// when it is run again.
func TestAnInterruptedRestoreCanBeResumed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.startNode()
	c := w.client(client.Options{})
	publish(t, c, "lobby", 3)
	s := w.createBackup()
	publish(t, c, "lobby", 3)
	w.switchWAL()
	c.Close()
	w.node.Kill()
	w.stack.apps["app_blue"] = false
	want := w.allMessages()
	to := time.Now()
	cutShort := func() {
		t.Helper()
		// Killed between the two renames.
		w.stack.beforeRun = func(service string, p *Program) error {
			if service == "bench" && len(p.Args) > 2 && p.Args[2] == swapScript {
				p.Args[2] = strings.Replace(swapScript, archiveStagedScript, "exit 9", 1)
			}
			return nil
		}
		_, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true})
		w.stack.beforeRun = nil
		if err == nil || !strings.Contains(err.Error(), "run the same restore again") {
			t.Fatalf("error %v", err)
		}
	}
	cutShort()
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true}); err == nil || !strings.Contains(err.Error(), "restore --to latest --backup "+s.Name+" was cut short") {
		t.Errorf("another restore: %v", err)
	}
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true}); err != nil {
		t.Fatal(err)
	}
	if got := w.allMessages(); got != want {
		t.Errorf("restored:\n%s\nwant\n%s", got, want)
	}
	w.switchWAL()

	// What it was to put into place is gone: what was there comes back.
	cutShort()
	parent := filepath.Dir(w.pg.DataDir())
	if err := os.RemoveAll(filepath.Join(parent, ".restore")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) {
		t.Errorf("nothing to go on with: %v", err)
	}
	w.pg.Start()
	if got := w.allMessages(); got != want {
		t.Errorf("what was there:\n%s\nwant\n%s", got, want)
	}

	// A leftover beside a database that runs is no restore to go on with.
	left := filepath.Join(parent, ".before-restore")
	for _, err := range []error{os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "PG_VERSION"), []byte("15\n"), 0o600), chownTo(w.stack.user, left)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.pg.Exec("DELETE FROM messages")
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) || !w.pg.Running() {
		t.Errorf("beside a leftover: %v", err)
	}
	w.switchWAL()
	if _, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if got := w.allMessages(); got != want {
		t.Errorf("restored beside a leftover:\n%s\nwant\n%s", got, want)
	}
	if left, _ := filepath.Glob(parent + "/.*re*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestConfigurationAndRedisAreRestored(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.stack.redis = testkit.StartRedis(t, "--appendonly", "yes")
	w.stack.redis.Do(t, "SET", "session", "ann")
	dir := t.TempDir()
	w.stack.files = []string{dir}
	settings, link, key := filepath.Join(dir, "settings"), filepath.Join(dir, "link"), filepath.Join(dir, "certs", "key")
	write := func(path, text string, mode os.FileMode) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(settings, "COLOR=blue\n", 0o640)
	write(key, "secret", 0o400)
	// Who is the primary is no configuration: a promotion came after the backup.
	w.stack.stateDir = filepath.Join(dir, "state")
	record, deleted := filepath.Join(w.stack.stateDir, "postgres", "primary"), filepath.Join(w.stack.stateDir, "current.json")
	write(record, "postgres\n", 0o644)
	write(deleted, "{}", 0o644)
	if err := os.Symlink("settings", link); err != nil {
		t.Fatal(err)
	}
	w.stack.acmeDir = t.TempDir()
	write(filepath.Join(w.stack.acmeDir, "acme.json"), "{}", 0o600)
	w.startNode().Kill()
	w.createBackup()
	write(filepath.Join(w.stack.acmeDir, "acme.json"), "", 0o600)
	write(settings, "COLOR=purple\n", 0o640)
	write(record, "postgres_replica\n", 0o644)
	removeFile(t, deleted)
	if err := errors.Join(os.RemoveAll(filepath.Dir(key)), os.Remove(link)); err != nil {
		t.Fatal(err)
	}
	w.stack.redis.Do(t, "SET", "session", "bob")

	if _, err := w.repository.Restore(t.Context(), RestoreRequest{Redis: true}); err == nil || !strings.Contains(err.Error(), "needs --replace") {
		t.Errorf("Redis without the word: %v", err)
	}
	out, err := w.repository.Restore(t.Context(), RestoreRequest{Configuration: true, Redis: true, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Configuration) != 3 {
		t.Errorf("written: %v", out.Configuration)
	}
	for path, want := range map[string]string{settings: "COLOR=blue\n", link: "COLOR=blue\n", key: "secret", filepath.Join(w.stack.acmeDir, "acme.json"): "{}"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, err := os.ReadFile(record); err != nil || string(b) != "postgres_replica\n" {
		t.Errorf("the record of the primary became %q, %v", b, err)
	}
	if _, err := os.Stat(deleted); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the deploy that ended is under way again: %v", err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("the key: %v, %v", info, err)
	}
	var kept []string
	n, err := readConfiguration(out.ReplacedArchive, func(h *tar.Header, b []byte) error { kept = append(kept, string(b)); return nil })
	if err != nil || n != 1 || kept[0] != "COLOR=purple\n" {
		t.Errorf("what was replaced: %q, %v", kept, err)
	}
	if got := w.stack.redis.Do(t, "GET", "session"); got != "ann" {
		t.Errorf("the session is %q", got)
	}
	again, err := w.repository.Restore(t.Context(), RestoreRequest{Configuration: true})
	if err != nil || len(again.Configuration) != 0 || again.ReplacedArchive != "" {
		t.Errorf("nothing differs any more: %+v, %v", again, err)
	}
}
