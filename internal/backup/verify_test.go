package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/testkit"
)

// One server plays the day of an operator: a backup while people publish, a
// proof, a second backup, what is told of them, and what goes when.
func TestABackupIsCreatedVerifiedAndRetained(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.stack.redis = testkit.StartRedis(t)
	w.stack.redis.Do(t, "SET", "session", "ann")
	w.startNode()
	c := w.client(client.Options{})
	publish(t, c, "lobby", 20)
	if _, err := w.repository.Verify(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "there is no backup in "+w.repository.Dir) {
		t.Errorf("verify without a backup: %v", err)
	}

	first := w.createBackup()
	if first.Log.Messages < 20 || first.Log.Epoch == "" || first.SystemID == "" || first.StopLSN <= first.StartLSN {
		t.Errorf("manifest: %+v", first.Manifest)
	}
	for _, name := range []string{baseFile, dumpFile, redisFile, configFile, headsFile} {
		if f, ok := first.file(name); !ok || f.Size == 0 {
			t.Errorf("the set has no %s: %+v", name, first.Files)
		}
	}
	// What comes after the base is in the archive, and proved with it.
	publish(t, c, "lobby", 20)
	publish(t, c, "yard", 5)
	w.switchWAL()
	result, err := w.repository.Verify(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if now := w.pg.Query("SELECT epoch FROM meta"); result.Log.Epoch != now || result.Log.Messages < first.Log.Messages+25 || result.Segments < 1 || result.LastCommit == "" {
		t.Errorf("epoch %s, first %+v, proof %+v", now, first.Log, result)
	}
	if left, _ := filepath.Glob(w.stack.scratchRoot + "/*"); len(left) > 0 {
		t.Errorf("left on the benches: %v", left)
	}
	w.expectMetrics(map[string]float64{"sets": 1, "last_verified_timestamp_seconds": unixSeconds(result.Verified), "last_success_timestamp_seconds": unixSeconds(first.Finished), "last_size_bytes": float64(first.Size())})

	// Retention: the newest two, and the one that was verified.
	w.repository.Keep = 2
	var names []string
	for range 3 {
		w.switchWAL()
		waitSecond(t)
		names = append(names, w.createBackup().Name)
	}
	sets, damaged := w.repository.Sets()
	var kept []string
	for _, s := range sets {
		kept = append(kept, s.Name)
	}
	if want := []string{first.Name, names[1], names[2]}; !slices.Equal(kept, want) || damaged != nil {
		t.Errorf("kept %v, want %v; damaged %v", kept, want, damaged)
	}
	if _, err := w.repository.Verify(t.Context(), names[2]); err != nil {
		t.Fatal(err)
	}
	if err := w.repository.applyRetention(); err != nil {
		t.Fatal(err)
	}
	sets, _ = w.repository.Sets()
	if len(sets) != 2 {
		t.Errorf("%d sets, want 2: the newest is verified now", len(sets))
	}
	w.expectArchiveFrom(sets[0])
}

// expectArchiveFrom fails unless the archive begins where the set needs it.
func (w *fixture) expectArchiveFrom(s *Set) {
	w.t.Helper()
	a, err := readArchive(w.stack.walDir, s.SegmentBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	oldest := ^uint64(0)
	for one := range a.files {
		oldest = min(oldest, one.number)
	}
	if want := segmentOf(s.StartLSN, s.SegmentBytes); oldest != want {
		w.t.Errorf("the archive begins at segment %d, want %d", oldest, want)
	}
}

// waitSecond waits until the clock shows another second: names of sets have one.
func waitSecond(t testing.TB) {
	begun := time.Now().Unix()
	until(t, "the next second", func() bool { return time.Now().Unix() > begun })
}

func (w *fixture) expectMetrics(want map[string]float64) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.repository.Dir, metricsFolder, "switchyard_backup.prom"))
	if err != nil {
		w.t.Fatal(err)
	}
	for name, value := range want {
		if line := fmt.Sprintf("\nswitchyard_backup_%s %.3f\n", name, value); !strings.Contains(string(b), line) {
			w.t.Errorf("no line %q in\n%s", line, b)
		}
	}
}

// Each kind of damage is told with the file's name, and a proof that was there
// stays.
func TestDamagedFilesAreNamed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.stack.redis = testkit.StartRedis(t)
	w.startNode()
	c := w.client(client.Options{})
	publish(t, c, "lobby", 5)
	s := w.createBackup()
	var segments []string
	for i := range 3 {
		publish(t, c, "lobby", 5)
		w.pg.Exec(fmt.Sprintf("CREATE TABLE filler%d AS SELECT g, repeat(md5(g::text), 20) AS x FROM generate_series(1, 4000) g", i))
		segments = append(segments, w.pg.Query("SELECT pg_walfile_name(pg_current_wal_lsn())")+gz)
		w.switchWAL()
	}
	w.node.Kill()
	if _, err := w.repository.Verify(t.Context(), s.Name); err != nil {
		t.Fatalf("before any damage: %v", err)
	}
	middle := filepath.Join(w.stack.walDir, segments[1])
	for _, tt := range []struct {
		name, file, says string
		damage           func(t *testing.T, path string)
	}{
		{"a base backup cut short", s.path(baseFile), "is cut short", func(t *testing.T, path string) { truncateFile(t, path, 1000) }},
		{"a byte of the base backup", s.path(baseFile), "is corrupt: its SHA-256", func(t *testing.T, path string) { flipByte(t, path, 5000) }},
		{"a dump that is gone", s.path(dumpFile), "is missing", removeFile},
		{"a manifest of half a page", s.path(manifestFile), "is damaged", func(t *testing.T, path string) { truncateFile(t, path, 50) }},
		{"a WAL segment that is gone", middle, "is missing, and ", removeFile},
		{"a WAL segment cut short", middle, "is c", func(t *testing.T, path string) { truncateFile(t, path, 2000) }},
		{"a byte of a packed WAL segment", middle, "is corrupt", func(t *testing.T, path string) { flipByte(t, path, 3000) }},
		{"a byte of a record in a segment", middle, "is corrupt: ", corruptRecord},
		{"another segment under its name", middle, "says that it is the one at", func(t *testing.T, path string) {
			copyFile(t, filepath.Join(w.stack.walDir, segments[0]), path)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kept := preserve(t, tt.file)
			tt.damage(t, tt.file)
			_, err := w.repository.Verify(t.Context(), s.Name)
			kept()
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), strings.TrimSuffix(filepath.Base(tt.file), gz)) {
				t.Errorf("error %v, want one that names %s and says %q", err, tt.file, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
			if _, err := os.Stat(s.path(verifyResultFile)); err != nil {
				t.Errorf("the proof that was there: %v", err)
			}
		})
	}
	if _, err := w.repository.Verify(t.Context(), s.Name); err != nil {
		t.Errorf("after all was mended: %v", err)
	}
}

// What stands in the way of a backup is one line, and leaves nothing behind.
func TestABackupThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	if _, err := w.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "has no table rooms") {
		t.Errorf("a database that was never migrated: %v", err)
	}
	w.startNode().Kill()
	for _, tt := range []struct {
		name, says string
		prepare    func(ctx context.Context) (context.Context, func())
	}{
		{"a disk that is nearly full", "BACKUP_DIR: ", func(ctx context.Context) (context.Context, func()) {
			w.repository.freeSpace = func(string) (int64, error) { return 1 << 20, nil }
			return ctx, func() { w.repository.freeSpace = nil }
		}},
		{"a disk that fills up meanwhile", "no space left on device", func(ctx context.Context) (context.Context, func()) {
			w.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_basebackup" {
					left, _ := filepath.Glob(filepath.Join(w.repository.Dir, setsFolder, partialPrefix+"*"))
					failWrites(t, filepath.Join(left[0], baseFile))
				}
				return nil
			}
			return ctx, func() { w.stack.beforeRun = nil }
		}},
		{"a base backup that dies", "base backup: ", func(ctx context.Context) (context.Context, func()) {
			w.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_basebackup" {
					p.Args = []string{"sh", "-c", "echo half; exit 1"}
				}
				return nil
			}
			return ctx, func() { w.stack.beforeRun = nil }
		}},
		{"a base backup that ends early and says nothing", "the base backup ", func(ctx context.Context) (context.Context, func()) {
			w.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_basebackup" {
					p.Args = []string{"sh", "-c", `"$0" "$@" | head -c 100000`, "pg_basebackup", "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast"}
				}
				return nil
			}
			return ctx, func() { w.stack.beforeRun = nil }
		}},
		{"an impatient operator", "context canceled", func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancel(ctx)
			w.stack.beforeRun = func(_ string, p *Program) error {
				if p.Args[0] == "pg_dump" {
					p.Args = []string{"sleep", "60"}
					time.AfterFunc(10*time.Millisecond, cancel)
				}
				return nil
			}
			return ctx, func() { w.stack.beforeRun = nil; cancel() }
		}},
		{"another one at work", ErrBusy.Error(), func(ctx context.Context) (context.Context, func()) {
			release, err := w.repository.lock()
			if err != nil {
				t.Fatal(err)
			}
			return ctx, release
		}},
		{"a primary that is gone", "no primary can be reached: postgres: psql: ", func(ctx context.Context) (context.Context, func()) {
			w.pg.Stop()
			return ctx, w.pg.Start
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, after := tt.prepare(t.Context())
			_, err := w.repository.Create(ctx, Options{})
			after()
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			left, _ := os.ReadDir(filepath.Join(w.repository.Dir, setsFolder))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	w.checkStalledArchive()
	w.pg.Exec("ALTER SYSTEM SET archive_command = ''", "SELECT pg_reload_conf()")
	until(t, "the setting is read", func() bool {
		return w.pg.Query("SHOW archive_command") == "(disabled)" || w.pg.Query("SHOW archive_command") == ""
	})
	if _, err := w.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "archive_command is") {
		t.Errorf("no archive: %v", err)
	}
}

// checkStalledArchive: a backup beside an archive that stands still is none, and one
// that was whole is not proved by what it brings itself.
func (w *fixture) checkStalledArchive() {
	t := w.t
	t.Helper()
	s := w.createBackup()
	segments, err := filepath.Glob(filepath.Join(w.stack.walDir, "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("archived: %v, %v", segments, err)
	}
	aside := filepath.Join(w.repository.Dir, "aside")
	if err := errors.Join(os.Rename(w.stack.walDir, aside), os.Mkdir(w.stack.walDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	stop := s.stopSegment().name(s.SegmentBytes)
	if _, err := w.repository.Verify(t.Context(), s.Name); err == nil || !strings.Contains(err.Error(), stop+" is missing, and nothing") || !strings.Contains(err.Error(), "archive_command") {
		t.Errorf("an archive that is empty: %v", err)
	}
	if err := errors.Join(os.Remove(w.stack.walDir), os.Rename(aside, w.stack.walDir)); err != nil {
		t.Fatal(err)
	}
	w.pg.Exec("ALTER SYSTEM SET archive_command = '/bin/false'", "SELECT pg_reload_conf()")
	until(t, "the setting is read", func() bool { return w.pg.Query("SHOW archive_command") == "/bin/false" })
	waitSecond(t)
	w.repository.archiveTimeout = time.Second
	if _, err := w.repository.Create(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "did not come into "+w.stack.walDir+" within 1s: archive_command stands still") || strings.Contains(err.Error(), "\n") {
		t.Errorf("an archive that stands still: %v", err)
	}
	sets, _ := w.repository.Sets()
	if len(sets) != 1 {
		t.Errorf("%d sets, want the one before", len(sets))
	}
}

// A log that contradicts itself is found whatever the files say.
func TestAnInconsistentLogIsFound(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.startNode()
	c := w.client(client.Options{})
	publish(t, c, "lobby", 10)
	publish(t, c, "yard", 10)
	c.Close()
	w.node.Kill()
	first := w.createBackup()
	for _, tt := range []struct{ says, sql string }{
		{"room lobby says 1 to 10 and holds 9 messages, 1 to 10", "DELETE FROM messages WHERE seq = 5 AND room_id = (SELECT id FROM rooms WHERE name = 'lobby')"},
		{"room yard says 1 to 10 and holds 9 messages, 1 to 9", "DELETE FROM messages WHERE seq = 10 AND room_id = (SELECT id FROM rooms WHERE name = 'yard')"},
		{"have no room", "DELETE FROM rooms WHERE name = 'yard'"},
		{"room yard is missing", "SELECT 1"},
	} {
		w.pg.Exec(tt.sql)
		w.switchWAL()
		_, err := w.repository.Verify(t.Context(), first.Name)
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
		{"a\t1\t5\n", "a\t1\t4\n", "room a ends at 4, and was at 5 when the backup began"},
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
		t.Error("a line that is none was taken")
	}
}

func truncateFile(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func flipByte(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[min(at, int64(len(b)/2))] ^= 0x55
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// corruptRecord changes a byte in the middle of a segment's records, and packs it
// soundly: only PostgreSQL's own sums can tell.
func corruptRecord(t *testing.T, path string) {
	t.Helper()
	r, err := openGzip(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	b[1<<20+1000] ^= 0x55
	writeGzip(t, path, b)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// preserve remembers a file, and returns what brings it back.
func preserve(t *testing.T, path string) (back func()) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, b, info.Mode()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
