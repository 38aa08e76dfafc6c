package backup

import (
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

// A follower is a client in a room that records its messages and gaps.
type follower struct {
	mu       sync.Mutex
	gaps     []client.Gap
	messages []message.Message
}

// follow joins a room from its start.
func (fx *fixture) follow(room message.Room) *follower {
	fx.t.Helper()
	f := new(follower)
	c := fx.client(client.Options{})
	_, err := c.Join(fx.t.Context(), room, client.Start(), client.Handler{
		Message: func(m message.Message) { f.mu.Lock(); defer f.mu.Unlock(); f.messages = append(f.messages, m) },
		Gap:     func(g client.Gap) { f.mu.Lock(); defer f.mu.Unlock(); f.gaps = append(f.gaps, g) },
	})
	if err != nil {
		fx.t.Fatal(err)
	}
	return f
}

// seen returns what the follower has received so far.
func (f *follower) seen() (gaps []client.Gap, messages []message.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append(gaps, f.gaps...), append(messages, f.messages...)
}

// allMessages lists all messages, a line each.
func (fx *fixture) allMessages() string { fx.t.Helper(); return fx.listMessages("true") }

// committedBefore lists the messages that were committed before a moment. A restored
// server only knows that of its own transactions.
func (fx *fixture) committedBefore(before time.Time) string {
	fx.t.Helper()
	return fx.listMessages("pg_xact_commit_timestamp(m.xmin) < '" + before.Format(time.RFC3339Nano) + "'")
}

// listMessages lists the messages for which a condition holds, by room and seq.
func (fx *fixture) listMessages(where string) string {
	fx.t.Helper()
	return fx.pg.Query(`SELECT r.name || ' ' || m.seq || ' ' || m.id FROM messages m JOIN rooms r ON r.id = m.room_id
		WHERE r.name NOT LIKE '\_%' AND ` + where + ` ORDER BY r.name COLLATE "C", m.seq`)
}

// betweenCommits returns a moment between two commits, in the longest pause in the
// middle third of all commits: commits that are close together may be ordered
// differently in the WAL than by their timestamps.
func (fx *fixture) betweenCommits() time.Time {
	fx.t.Helper()
	answer := fx.pg.Query(`WITH c AS (SELECT DISTINCT pg_xact_commit_timestamp(m.xmin) AS at FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name IN ('lobby', 'yard')),
		n AS (SELECT at, lead(at) OVER (ORDER BY at) AS next, row_number() OVER (ORDER BY at) AS i, count(*) OVER () AS n FROM c)
		SELECT to_char((at + (next - at) / 2) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM n WHERE i BETWEEN n / 3 AND 2 * n / 3 ORDER BY next - at DESC LIMIT 1`)
	at, err := time.Parse(time.RFC3339Nano, answer)
	if err != nil {
		fx.t.Fatal(err)
	}
	return at
}

// Clients continue to publish after a backup, and the primary's disk is lost. A restore
// restores exactly the messages that were committed before the given moment, and
// a client that had received more gets a gap.
func TestARestoreBringsBackExactlyWhatWasCommitted(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startNode()
	c := fx.client(client.Options{})
	publish(t, c, "lobby", 30)
	fx.createBackup()
	f := fx.follow("lobby")
	for range 4 {
		publish(t, c, "lobby", 15)
		publish(t, c, "yard", 15)
	}
	acks := publish(t, c, "lobby", 1)
	last := acks[0]
	testkit.Eventually(t, "the follower has all messages", func() bool { _, m := f.seen(); return len(m) == int(last.Seq) })
	to := fx.betweenCommits()
	want := fx.committedBefore(to)
	fx.switchWAL()

	fx.pg.Stop()
	if err := os.RemoveAll(fx.pg.DataDir()); err != nil {
		t.Fatal(err)
	}
	out, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := fx.allMessages(); got != want || strings.Count(got, "\n") < 20 {
		t.Errorf("restored to %v:\n%s\nwant\n%s", to, got, want)
	}
	if !fx.stack.apps["app_blue"] || out.LastCommit == "" || out.Log.Messages == 0 {
		t.Errorf("%+v; services %v", out, fx.stack.apps)
	}
	var gap client.Gap
	testkit.Eventually(t, "the follower has a gap", func() bool {
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
		t.Errorf("the first publish after the restore: %+v", next)
	}
	testkit.Eventually(t, "the follower has the next message", func() bool {
		_, m := f.seen()
		return m[len(m)-1].Epoch == next.Epoch && m[len(m)-1].Seq == next.Seq
	})
	fx.restoreAgain(to, c)
}

// restoreAgain restores from the same backup a second time, over two timelines: the
// result has all that was published after the first restore.
func (fx *fixture) restoreAgain(to time.Time, c *client.Client) {
	t := fx.t
	t.Helper()
	publish(t, c, "yard", 3)
	fx.switchWAL()
	before := fx.pg.Query("SELECT epoch FROM meta")
	all := fx.allMessages()
	if _, err := fx.repository.Verify(t.Context(), ""); err != nil {
		t.Errorf("verify over two timelines: %v", err)
	}
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) {
		t.Errorf("a restore over a live database without Replace: %v", err)
	}
	if now := fx.allMessages(); now != all || !fx.pg.Running() {
		t.Error("a refused restore changed something")
	}
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if got := fx.allMessages(); got != all {
		t.Errorf("after the second restore\n%s\nwant\n%s", got, all)
	}
	publish(t, c, "yard", 1)
	if now := fx.pg.Query("SELECT epoch FROM meta"); now == before {
		t.Error("the second restore kept the epoch")
	}
	if left, _ := filepath.Glob(filepath.Dir(fx.pg.DataDir()) + "/.*re*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A restore that fails is reported on one line, and the database and the service
// stay as they are.
// A restorable is a primary with a node, a backup and an archive that reaches beyond a
// moment to restore to.
type restorable struct {
	*fixture
	early   time.Time // before the backup
	set     *Set
	segment string // of the archive: the moment needs it
	to      time.Time
	all     string // the messages, as allMessages returns them
}

func newRestorable(t *testing.T) *restorable {
	t.Helper()
	r := &restorable{fixture: newFixture(t)}
	r.startNode()
	c := r.client(client.Options{})
	if _, err := r.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err == nil || !strings.Contains(err.Error(), "there is no backup in") {
		t.Errorf("without a backup: %v", err)
	}
	publish(t, c, "lobby", 3)
	r.early = time.Now()
	r.switchWAL()
	r.set = r.createBackup()
	publish(t, c, "lobby", 3)
	r.pg.Exec("CREATE TABLE filler AS SELECT g, repeat(md5(g::text), 20) AS x FROM generate_series(1, 500) g")
	r.segment = filepath.Join(r.stack.walDir, r.pg.Query("SELECT pg_walfile_name(pg_current_wal_lsn())")+gz)
	r.switchWAL()
	publish(t, c, "lobby", 3)
	r.to = r.betweenCommitsAfter(r.set.Consistent)
	r.switchWAL()
	r.all = r.allMessages()
	return r
}

func TestAFailedRestoreChangesNothing(t *testing.T) {
	t.Parallel()
	fx := newRestorable(t)
	s, segment, to, early, all := fx.set, fx.segment, fx.to, fx.early, fx.all
	name := filepath.Base(segment)
	for _, tt := range []struct {
		name, says string
		request    RestoreRequest
		damage     func(t *testing.T)
	}{
		{"a time in the future", "is in the future", RestoreRequest{To: time.Now().Add(time.Hour)}, nil},
		{"a time before any backup", "is before the oldest backup, " + s.Name, RestoreRequest{To: early}, nil},
		{"a backup that began later", "is before the backup " + s.Name, RestoreRequest{To: early, Set: s.Name}, nil},
		{"an unknown backup", `there is no backup "nightly"`, RestoreRequest{Set: "nightly"}, nil},
		{"a time that the archive does not reach", "the archive ends with the commit at", RestoreRequest{To: time.Now()}, nil},
		{"an unknown timeline", "timeline 7", RestoreRequest{Timeline: 7}, nil},
		{"a corrupt segment before the moment", name + " is corrupt", RestoreRequest{To: to}, func(t *testing.T) { corruptRecord(t, segment) }},
		{"a missing segment before the moment", strings.TrimSuffix(name, gz) + " is missing", RestoreRequest{To: to}, func(t *testing.T) { removeFile(t, segment) }},
		{"a corrupt segment in a restore of the whole archive", name + " is corrupt", RestoreRequest{}, func(t *testing.T) { flipByte(t, segment, 3000) }},
		{"a truncated base backup", "is truncated", RestoreRequest{}, func(t *testing.T) { truncateFile(t, s.path(baseFile), 1000) }},
		{"a disk that fills up", "base.tar.gz: sh: cat: ", RestoreRequest{}, func(*testing.T) { fx.stack.beforeRun = fillDiskOnUnpack }},
		{"a scratch server that can't start", "the scratch server can't start", RestoreRequest{}, func(t *testing.T) {
			fx.stack.beforeRun = func(service string, p *Program) error {
				if service == "scratch" && p.Args[0] == "pg_ctl" {
					p.Args = append(p.Args, "--options=-c shared_buffers=nonsense")
				}
				return nil
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undo := []func(){preserve(t, segment), preserve(t, s.path(baseFile)), func() { fx.stack.beforeRun = nil }}
			if tt.damage != nil {
				tt.damage(t)
			}
			tt.request.Database, tt.request.Replace = true, true
			_, err := fx.repository.Restore(t.Context(), tt.request)
			for _, f := range undo {
				f()
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line that says %q", err, tt.says)
			}
			if !fx.pg.Running() || !fx.stack.apps["app_blue"] || fx.allMessages() != all {
				t.Error("the database or the service changed")
			}
		})
	}
}

func TestARestoredServerThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	fx := newRestorable(t)
	t.Run("it does not start", func(t *testing.T) { fx.checkServerThatDoesNotStart(t, fx.to) })
	t.Run("it fails after its timeline began", func(t *testing.T) { fx.checkWithdrawnTimeline(t, fx.to) })
}

// checkServerThatDoesNotStart checks that the old data come back if the restored
// server does not start.
func (fx *fixture) checkServerThatDoesNotStart(t *testing.T, to time.Time) {
	t.Helper()
	all, epoch := fx.allMessages(), fx.pg.Query("SELECT epoch FROM meta")
	fx.stack.failStarts(PostgresService, 1)
	_, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
	if err == nil || !strings.Contains(err.Error(), "the restored server does not start, and the old data are back: the start failed") {
		t.Errorf("error %v", err)
	}
	if !fx.pg.Running() || !fx.stack.apps["app_blue"] || fx.allMessages() != all || fx.pg.Query("SELECT epoch FROM meta") != epoch {
		t.Error("the old data are not back")
	}
	fx.expectOneTimeline(all)
}

// checkWithdrawnTimeline checks that a failed restore leaves no timeline in the
// archive that a later restore would follow.
func (fx *fixture) checkWithdrawnTimeline(t *testing.T, to time.Time) {
	t.Helper()
	all := fx.allMessages()
	fx.stack.beforeRun = func(service string, p *Program) error {
		if service == "scratch" && strings.Contains(strings.Join(p.Args, " "), "UPDATE meta") {
			return errors.New("killed")
		}
		return nil
	}
	_, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
	fx.stack.beforeRun = nil
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error %v", err)
	}
	fx.expectOneTimeline(all)
	fx.switchWAL()
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if got := fx.allMessages(); got != all {
		t.Errorf("a restore of the whole archive, after restores that failed:\n%s\nwant\n%s", got, all)
	}
	if begun, _ := filepath.Glob(filepath.Join(fx.stack.walDir, "00000002.history*")); len(begun) != 1 {
		t.Errorf("the archive has no history of the new timeline: %v", begun)
	}
}

// expectOneTimeline fails unless the archive has only the first timeline, and the
// database the messages all.
func (fx *fixture) expectOneTimeline(all string) {
	fx.t.Helper()
	if begun, _ := filepath.Glob(filepath.Join(fx.stack.walDir, "00000002*")); len(begun) > 0 || fx.allMessages() != all {
		fx.t.Errorf("a restore that failed changed the messages or left a timeline: %v", begun)
	}
	if left, _ := filepath.Glob(filepath.Join(fx.stack.walDir, ".*")); len(left) > 0 {
		fx.t.Errorf("left in the archive: %v", left)
	}
}

// betweenCommitsAfter returns a moment between the last two commits in lobby, which
// must lie after the given one.
func (fx *fixture) betweenCommitsAfter(after time.Time) time.Time {
	fx.t.Helper()
	answer := fx.pg.Query(`WITH c AS (SELECT DISTINCT pg_xact_commit_timestamp(m.xmin) AS at FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'lobby'),
		n AS (SELECT at, lag(at) OVER (ORDER BY at) AS previous FROM c ORDER BY at DESC LIMIT 2)
		SELECT to_char((previous + (at - previous) / 2) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM n ORDER BY at LIMIT 1`)
	at, err := time.Parse(time.RFC3339Nano, answer)
	if err != nil || at.Before(after) {
		fx.t.Fatalf("%v: %v", at, err)
	}
	return at
}

// A restore that was killed while it replaced the data can be run again.
func TestAnInterruptedRestoreCanBeResumed(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startNode()
	c := fx.client(client.Options{})
	publish(t, c, "lobby", 3)
	s := fx.createBackup()
	publish(t, c, "lobby", 3)
	fx.switchWAL()
	c.Close()
	fx.node.Kill()
	fx.stack.apps["app_blue"] = false
	want := fx.allMessages()
	to := time.Now()
	interrupt := func() {
		t.Helper()
		// Killed between the two renames.
		fx.stack.beforeRun = func(service string, p *Program) error {
			if service == "scratch" && len(p.Args) > 2 && p.Args[2] == swapScript {
				p.Args[2] = strings.Replace(swapScript, archiveStagedScript, "exit 9", 1)
			}
			return nil
		}
		_, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true, Replace: true})
		fx.stack.beforeRun = nil
		if err == nil || !strings.Contains(err.Error(), "run the same restore again to continue") {
			t.Fatalf("error %v", err)
		}
	}
	interrupt()
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true}); err == nil || !strings.Contains(err.Error(), "restore --to latest --backup "+s.Name+" was interrupted") {
		t.Errorf("another restore: %v", err)
	}
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true}); err != nil {
		t.Fatal(err)
	}
	if got := fx.allMessages(); got != want {
		t.Errorf("restored:\n%s\nwant\n%s", got, want)
	}
	fx.switchWAL()

	// The restored data are gone: the old data come back.
	interrupt()
	parent := filepath.Dir(fx.pg.DataDir())
	if err := os.RemoveAll(filepath.Join(parent, ".restore")); err != nil {
		t.Fatal(err)
	}
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) {
		t.Errorf("a restore that can't be continued: %v", err)
	}
	fx.pg.Start()
	if got := fx.allMessages(); got != want {
		t.Errorf("the old data have:\n%s\nwant\n%s", got, want)
	}

	// A leftover beside a running database is not an interrupted restore.
	left := filepath.Join(parent, ".before-restore")
	for _, err := range []error{os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "PG_VERSION"), []byte("15\n"), 0o600), chownTo(fx.stack.user, left)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fx.pg.Exec("DELETE FROM messages")
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Database: true}); !errors.Is(err, ErrDatabaseExists) || !fx.pg.Running() {
		t.Errorf("beside a leftover: %v", err)
	}
	fx.switchWAL()
	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if got := fx.allMessages(); got != want {
		t.Errorf("restored beside a leftover:\n%s\nwant\n%s", got, want)
	}
	if left, _ := filepath.Glob(parent + "/.*re*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
