package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/testkit"
)

// A backup is created while clients publish, and verified. The metrics describe it,
// and retention removes old backups and the WAL that only they need.
func TestABackupIsCreatedVerifiedAndRetained(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startRedis()
	fx.startNode()
	c := fx.client(client.Options{})
	publish(t, c, "lobby", 20)
	if _, err := fx.repository.Verify(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "there is no backup in "+fx.repository.Dir) {
		t.Errorf("verify without a backup: %v", err)
	}

	first := fx.createBackup()
	if first.Log.Messages < 20 || first.Log.Epoch == "" || first.SystemID == "" || first.StopLSN <= first.StartLSN {
		t.Errorf("manifest: %+v", first.Manifest)
	}
	for _, name := range []string{baseFile, dumpFile, redisFile, configFile, headsFile} {
		if f, ok := first.file(name); !ok || f.Size == 0 {
			t.Errorf("the set has no %s: %+v", name, first.Files)
		}
	}
	// Messages after the base backup are in the archive, and verified with it.
	publish(t, c, "lobby", 20)
	publish(t, c, "yard", 5)
	fx.switchWAL()
	result, err := fx.repository.Verify(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if now := fx.pg.Query("SELECT epoch FROM meta"); result.Log.Epoch != now || result.Log.Messages < first.Log.Messages+25 || result.Segments < 1 || result.LastCommit == "" {
		t.Errorf("epoch %s, first %+v, result %+v", now, first.Log, result)
	}
	if left, _ := filepath.Glob(fx.stack.scratchRoot + "/*"); len(left) > 0 {
		t.Errorf("left by the scratch servers: %v", left)
	}
	fx.expectMetrics(map[string]float64{"sets": 1, "last_verified_timestamp_seconds": unixSeconds(result.Verified), "last_success_timestamp_seconds": unixSeconds(first.Finished), "last_size_bytes": float64(first.Size())})

	// Retention keeps the newest two, and the newest verified one.
	fx.repository.Keep = 2
	var names []string
	for range 3 {
		fx.switchWAL()
		waitSecond(t)
		names = append(names, fx.createBackup().Name)
	}
	sets, damaged := fx.repository.Sets()
	var kept []string
	for _, s := range sets {
		kept = append(kept, s.Name)
	}
	if want := []string{first.Name, names[1], names[2]}; !slices.Equal(kept, want) || damaged != nil {
		t.Errorf("kept %v, want %v; damaged %v", kept, want, damaged)
	}
	if _, err := fx.repository.Verify(t.Context(), names[2]); err != nil {
		t.Fatal(err)
	}
	if err := fx.repository.applyRetention(); err != nil {
		t.Fatal(err)
	}
	sets, _ = fx.repository.Sets()
	if len(sets) != 2 {
		t.Errorf("%d sets are left, want 2: the newest is verified now", len(sets))
	}
	fx.expectArchiveFrom(sets[0])
}

// expectArchiveFrom fails unless the archive begins with the set's first segment.
func (fx *fixture) expectArchiveFrom(s *Set) {
	fx.t.Helper()
	a, err := readArchive(fx.stack.walDir, s.SegmentBytes)
	if err != nil {
		fx.t.Fatal(err)
	}
	oldest := ^uint64(0)
	for one := range a.files {
		oldest = min(oldest, one.number)
	}
	if want := segmentOf(s.StartLSN, s.SegmentBytes); oldest != want {
		fx.t.Errorf("the archive begins at segment %d, want %d", oldest, want)
	}
}

// waitSecond waits until the clock shows another second: the names of sets have a
// resolution of one second.
func waitSecond(t testing.TB) {
	begun := time.Now().Unix()
	testkit.Eventually(t, "the next second", func() bool { return time.Now().Unix() > begun })
}

// expectMetrics fails unless the metrics have these values.
func (fx *fixture) expectMetrics(want map[string]float64) {
	fx.t.Helper()
	b := testkit.ReadFile(fx.t, filepath.Join(fx.repository.Dir, metricsFolder, "switchyard_backup.prom"))
	for name, value := range want {
		if line := fmt.Sprintf("\nswitchyard_backup_%s %.3f\n", name, value); !strings.Contains(string(b), line) {
			fx.t.Errorf("no line %q in\n%s", line, b)
		}
	}
}

// Verify names the damaged file, and keeps the last verify result.
func TestDamagedFilesAreNamed(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startRedis()
	fx.startNode()
	c := fx.client(client.Options{})
	publish(t, c, "lobby", 5)
	s := fx.createBackup()
	var segments []string
	for i := range 3 {
		publish(t, c, "lobby", 5)
		fx.pg.Exec(fmt.Sprintf("CREATE TABLE filler%d AS SELECT g, repeat(md5(g::text), 20) AS x FROM generate_series(1, 500) g", i))
		segments = append(segments, fx.pg.Query("SELECT pg_walfile_name(pg_current_wal_lsn())")+gz)
		fx.switchWAL()
	}
	fx.node.Kill()
	if _, err := fx.repository.Verify(t.Context(), s.Name); err != nil {
		t.Fatalf("before any damage: %v", err)
	}
	middle := filepath.Join(fx.stack.walDir, segments[1])
	for _, tt := range []struct {
		name, file, says string
		damage           func(t *testing.T, path string)
	}{
		{"a truncated base backup", s.path(baseFile), "is truncated", func(t *testing.T, path string) { truncateFile(t, path, 1000) }},
		{"a changed byte of the base backup", s.path(baseFile), "is corrupt: its SHA-256", func(t *testing.T, path string) { flipByte(t, path, 5000) }},
		{"a missing dump", s.path(dumpFile), "is missing", removeFile},
		{"a truncated manifest", s.path(manifestFile), "is damaged", func(t *testing.T, path string) { truncateFile(t, path, 50) }},
		{"a missing WAL segment", middle, "is missing, but ", removeFile},
		{"a truncated WAL segment", middle, "is truncated", func(t *testing.T, path string) { truncateFile(t, path, 2000) }},
		{"a changed byte of a compressed WAL segment", middle, "is corrupt", func(t *testing.T, path string) { flipByte(t, path, 3000) }},
		{"a changed byte of a record in a segment", middle, "is corrupt: ", corruptRecord},
		{"another segment under its name", middle, "has the address", func(t *testing.T, path string) {
			testkit.CopyFile(t, filepath.Join(fx.stack.walDir, segments[0]), path)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kept := preserve(t, tt.file)
			tt.damage(t, tt.file)
			_, err := fx.repository.Verify(t.Context(), s.Name)
			kept()
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), strings.TrimSuffix(filepath.Base(tt.file), gz)) {
				t.Errorf("error %v, want one that names %s and says %q", err, tt.file, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
			if _, err := os.Stat(s.path(verifyResultFile)); err != nil {
				t.Errorf("the last verify result is gone: %v", err)
			}
		})
	}
	if _, err := fx.repository.Verify(t.Context(), s.Name); err != nil {
		t.Errorf("after all files were repaired: %v", err)
	}
}

// A backup that fails is reported on one line, and leaves nothing behind.
func TestABackupThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	if _, err := fx.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "has no table rooms") {
		t.Errorf("a database that was never migrated: %v", err)
	}
	fx.startNode().Kill()
	for _, tt := range []struct {
		name, says string
		prepare    func(ctx context.Context) (context.Context, func())
	}{
		{"a disk that is nearly full", "BACKUP_DIR: ", func(ctx context.Context) (context.Context, func()) {
			fx.repository.freeSpace = func(string) (int64, error) { return 1 << 20, nil }
			return ctx, func() { fx.repository.freeSpace = nil }
		}},
		{"a disk that fills up", "no space left on device", func(ctx context.Context) (context.Context, func()) {
			fx.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_basebackup" {
					left, _ := filepath.Glob(filepath.Join(fx.repository.Dir, setsFolder, partialPrefix+"*"))
					failWrites(t, filepath.Join(left[0], baseFile))
				}
				return nil
			}
			return ctx, func() { fx.stack.beforeRun = nil }
		}},
		{"a base backup that dies", "base backup: ", func(ctx context.Context) (context.Context, func()) {
			return ctx, fx.replaceProgram("pg_basebackup", "sh", "-c", "echo half; exit 1")
		}},
		{"a base backup that ends early without an error", "the base backup ", func(ctx context.Context) (context.Context, func()) {
			return ctx, fx.replaceProgram("pg_basebackup", "sh", "-c", `"$0" "$@" | head -c 100000`, "pg_basebackup", "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast")
		}},
		{"a canceled command", "context canceled", func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancel(ctx)
			fx.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_dump" {
					p.Args = []string{"sleep", "infinity"}
					time.AfterFunc(10*time.Millisecond, cancel)
				}
				return nil
			}
			return ctx, func() { fx.stack.beforeRun = nil; cancel() }
		}},
		{"another command", ErrBusy.Error(), func(ctx context.Context) (context.Context, func()) {
			release, err := fx.repository.lock()
			if err != nil {
				t.Fatal(err)
			}
			return ctx, release
		}},
		{"a primary that does not run", "no primary can be reached: postgres: psql: ", func(ctx context.Context) (context.Context, func()) {
			fx.pg.Stop()
			return ctx, fx.pg.Start
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, after := tt.prepare(t.Context())
			_, err := fx.repository.Create(ctx, Options{})
			after()
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			left, _ := os.ReadDir(filepath.Join(fx.repository.Dir, setsFolder))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	fx.checkStalledArchive()
	fx.pg.Exec("ALTER SYSTEM SET archive_command = ''", "SELECT pg_reload_conf()")
	testkit.Eventually(t, "the setting is read", func() bool {
		return fx.pg.Query("SHOW archive_command") == "(disabled)" || fx.pg.Query("SHOW archive_command") == ""
	})
	if _, err := fx.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "archive_command is") {
		t.Errorf("a database without an archive: %v", err)
	}
}

// replaceProgram runs another program in place of the named one, until undo.
func (fx *fixture) replaceProgram(name string, args ...string) (undo func()) {
	fx.stack.beforeRun = func(_ string, p *Program) error {
		if p.Args[0] == name {
			p.Args = args
		}
		return nil
	}
	return func() { fx.stack.beforeRun = nil }
}

// checkStalledArchive checks that a backup fails if archive_command does not work,
// and that verify needs the archive although the base backup has its own WAL.
func (fx *fixture) checkStalledArchive() {
	t := fx.t
	t.Helper()
	s := fx.createBackup()
	segments, err := filepath.Glob(filepath.Join(fx.stack.walDir, "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("archived: %v, %v", segments, err)
	}
	aside := filepath.Join(fx.repository.Dir, "aside")
	if err := errors.Join(os.Rename(fx.stack.walDir, aside), os.Mkdir(fx.stack.walDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	stop := s.stopSegment().name(s.SegmentBytes)
	if _, err := fx.repository.Verify(t.Context(), s.Name); err == nil || !strings.Contains(err.Error(), stop+" is missing, and so are all later segments") || !strings.Contains(err.Error(), "archive_command") {
		t.Errorf("an empty archive: %v", err)
	}
	if err := errors.Join(os.Remove(fx.stack.walDir), os.Rename(aside, fx.stack.walDir)); err != nil {
		t.Fatal(err)
	}
	fx.pg.Exec("ALTER SYSTEM SET archive_command = '/bin/false'", "SELECT pg_reload_conf()")
	testkit.Eventually(t, "the setting is read", func() bool { return fx.pg.Query("SHOW archive_command") == "/bin/false" })
	waitSecond(t)
	fx.repository.archiveTimeout = time.Second
	if _, err := fx.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "did not arrive in "+fx.stack.walDir+" within 1s: archive_command does not work") || strings.Contains(err.Error(), "\n") {
		t.Errorf("an archive_command that fails: %v", err)
	}
	sets, _ := fx.repository.Sets()
	if len(sets) != 1 {
		t.Errorf("%d sets, want the one before", len(sets))
	}
}

// Verify finds a log whose tables contradict each other, although all files are
// intact.
func TestAnInconsistentLogIsFound(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startNode()
	c := fx.client(client.Options{})
	publish(t, c, "lobby", 10)
	publish(t, c, "yard", 10)
	c.Close()
	fx.node.Kill()
	first := fx.createBackup()
	for _, tt := range []struct{ says, sql string }{
		{"room lobby should have 1 to 10 and has 9 messages, 1 to 10", "DELETE FROM messages WHERE seq = 5 AND room_id = (SELECT id FROM rooms WHERE name = 'lobby')"},
		{"room yard should have 1 to 10 and has 9 messages, 1 to 9", "DELETE FROM messages WHERE seq = 10 AND room_id = (SELECT id FROM rooms WHERE name = 'yard')"},
		{"have no room", "DELETE FROM rooms WHERE name = 'yard'"},
		{"room yard is missing", "SELECT 1"},
	} {
		fx.pg.Exec(tt.sql)
		fx.switchWAL()
		_, err := fx.repository.Verify(t.Context(), first.Name)
		var wrong *LogIntegrityError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("error %v, want one that says %q", err, tt.says)
		}
	}
}

func TestRoomListsAreCompared(t *testing.T) {
	for _, tt := range []struct{ old, now, want string }{
		{"a\t1\t5\nb\t1\t2\n", "a\t1\t5\nb\t1\t2\n", ""},
		{"b\t1\t2\n", "a\t1\t1\nb\t2\t9\nc\t1\t1\n", ""},
		{"a\t1\t5\n", "a\t1\t4\n", "room a ends at 4, but was at 5 when the backup began"},
		{"a\t1\t5\nb\t1\t1\n", "a\t1\t5\n", "room b is missing"},
		{"a\t1\t5\n", "b\t1\t4\n", "room a is missing"},
		{"a\t1\t5\n", "", "room a is missing"},
		{"", "", ""},
	} {
		got, err := compareRoomHeads(strings.NewReader(tt.old), strings.NewReader(tt.now))
		if err != nil || strings.Join(got, "; ") != tt.want {
			t.Errorf("%q, %q: %v, %v", tt.old, tt.now, got, err)
		}
	}
	if _, err := compareRoomHeads(strings.NewReader("no list"), strings.NewReader("")); err == nil {
		t.Error("an invalid line was accepted")
	}
}
