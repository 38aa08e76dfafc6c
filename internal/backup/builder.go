package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A builder writes one backup into a folder. It is not safe for concurrent use.
type builder struct {
	repository *Repository
	dir        string
	manifest   Manifest
}

// Bounds on programs whose work grows with the database, and on short queries.
const (
	longLimit  = 12 * time.Hour
	shortLimit = 2 * time.Minute
)

// build writes all files of the backup, the manifest last.
func (b *builder) build(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	service, err := b.repository.findPrimary(ctx)
	if err != nil {
		return err
	}
	run := runOn(b.repository.Runner, service)
	size, err := b.inspectDatabase(ctx, run)
	if err != nil {
		return err
	}
	// The compressed base, with its own WAL, and the dump together need no more
	// than the data; the archive grows at the same time.
	if err := b.repository.requireSpace(size + 4*b.manifest.SegmentBytes); err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"rooms", func() error { return b.roomHeads(ctx, run) }},
		{"base backup", func() error { return b.baseBackup(ctx, run) }},
		{"dump", func() error {
			if o.SkipDump {
				return nil
			}
			return b.writeFile(dumpFile, func(w io.Writer) error {
				return run(ctx, stack.Program{Args: []string{"pg_dump", "--format=custom", "--compress=1", "--lock-wait-timeout=60s"}, Stdout: w})
			})
		}},
		{"Redis", func() error { return b.redisSnapshot(ctx) }},
		{"certificates", func() error { return b.certificates(ctx) }},
		{"configuration", func() error { return b.configuration(ctx) }},
		// Last, so that archive_command had all that time.
		{"WAL archive", func() error { return b.waitArchived(ctx, run) }},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		b.repository.Logger.Info("backed up", "part", step.name, "took", time.Since(began).Round(time.Millisecond))
	}
	b.manifest.Finished = time.Now().UTC()
	return writeJSON(filepath.Join(b.dir, manifestFile), b.manifest)
}

// findPrimary returns the service that takes writes, which is the former standby
// after a promotion.
func (repo *Repository) findPrimary(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	var errs []error
	for _, service := range []string{stack.PostgresService, stack.PostgresReplicaService} {
		answer, err := output(ctx, runOn(repo.Runner, service), "psql", "-XAtc", "SELECT pg_is_in_recovery()")
		if err == nil && answer == "f" {
			return service, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", service, err))
		}
	}
	if len(errs) == 0 {
		return "", errors.New("no primary: both servers are in recovery; switchyard promote-replica promotes one")
	}
	return "", fmt.Errorf("no primary can be reached: %w", joinLine(errs))
}

// joinLine joins errors in one line. Unlike errors.Join it needs at least one, and
// none may be nil.
func joinLine(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

const sqlDatabaseInfo = `SELECT current_setting('server_version'), current_setting('archive_mode'), current_setting('archive_command'),
 (SELECT system_identifier FROM pg_control_system()), current_database(), pg_database_size(current_database()),
 (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'), to_regclass('rooms') IS NOT NULL`

// inspectDatabase writes the database's identity into the manifest and returns the
// size of its data. It refuses a database without a WAL archive.
func (b *builder) inspectDatabase(ctx context.Context, run func(context.Context, stack.Program) error) (size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	answer, err := output(ctx, run, "psql", "-XAt", "-F", "\x1f", "-c", sqlDatabaseInfo)
	if err != nil {
		return 0, err
	}
	f := strings.Split(answer, "\x1f")
	if len(f) != 8 {
		return 0, fmt.Errorf("psql answered %q", answer)
	}
	if f[1] == "off" || f[2] == "" || f[2] == "(disabled)" {
		return 0, fmt.Errorf("archive_mode is %s and archive_command is %q: point-in-time recovery needs a WAL archive", f[1], f[2])
	}
	if f[7] != "t" {
		return 0, fmt.Errorf("the database %s has no table rooms: it is not the log of this service, or was never migrated", f[4])
	}
	b.manifest.PostgreSQL, b.manifest.SystemID, b.manifest.Database = f[0], f[3], f[4]
	size, err1 := strconv.ParseInt(f[5], 10, 64)
	b.manifest.SegmentBytes, err = strconv.ParseInt(f[6], 10, 64)
	return size, errors.Join(err1, err)
}

// writeFile creates a file of the backup from what produce writes, flushes it, and
// adds it to the manifest with its checksum.
func (b *builder) writeFile(name string, produce func(io.Writer) error) error {
	f, err := os.OpenFile(filepath.Join(b.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	sum := sha256.New()
	disk := &countingWriter{to: io.MultiWriter(f, sum)}
	buffer := bufio.NewWriterSize(disk, 1<<18)
	err = produce(buffer)
	err = errors.Join(err, buffer.Flush(), f.Sync(), f.Close())
	if disk.err != nil { // a full disk also makes the program fail: report the cause
		return fmt.Errorf("write %s: %w", filepath.Join(b.dir, name), disk.err)
	}
	if err != nil {
		return err
	}
	b.manifest.Files = append(b.manifest.Files, File{Name: name, Size: disk.n, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// A countingWriter counts bytes and remembers its first error.
type countingWriter struct {
	to  io.Writer
	n   int64
	err error
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.n += int64(n)
	if err != nil && c.err == nil {
		c.err = err
	}
	return n, err
}

// sqlRoomHeads lists the rooms at the beginning of a backup. A restored log must
// reach at least these heads.
const sqlRoomHeads = `COPY (SELECT name, first, head FROM rooms ORDER BY name) TO STDOUT`

// roomHeads writes the counts of the log into the manifest, and the list of rooms
// into a file.
func (b *builder) roomHeads(ctx context.Context, run func(context.Context, stack.Program) error) error {
	log, err := readLogStats(ctx, run)
	if err != nil {
		return err
	}
	b.manifest.Log = log
	return b.writeFile(headsFile, func(w io.Writer) error {
		pack := gzip.NewWriter(w)
		return errors.Join(run(ctx, stack.Program{Args: []string{"psql", "-Xqc", sqlRoomHeads}, Stdout: pack}), pack.Close())
	})
}

var startLocation = regexp.MustCompile(`(?m)^START WAL LOCATION: (\S+) \(file ([0-9A-F]{24})\)$`)

// baseBackup streams a base backup, with the WAL that makes it consistent, into a
// file, and records where in the WAL it begins and ends.
func (b *builder) baseBackup(ctx context.Context, run func(context.Context, stack.Program) error) error {
	var label, manifest []byte
	err := b.writeFile(baseFile, func(w io.Writer) error {
		pack, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		out, in := io.Pipe()
		read := make(chan error, 1)
		go func() {
			var err error
			label, manifest, err = readBase(io.TeeReader(out, pack))
			_ = out.CloseWithError(err) // ends pg_basebackup
			read <- err
		}()
		err = run(ctx, stack.Program{Stdout: in, Args: []string{
			"pg_basebackup", "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast",
			"--label=switchyard " + b.manifest.Name, "--no-password",
		}})
		_ = in.CloseWithError(err)
		if readErr := <-read; err == nil {
			err = readErr
		}
		return errors.Join(err, pack.Close())
	})
	if err != nil {
		return err
	}
	if err := b.recordLSNs(label, manifest); err != nil {
		return err
	}
	return b.recordConsistentTime(ctx, run)
}

// readBase reads the tar of a base backup to its end, and returns the label and
// the manifest in it.
func readBase(r io.Reader) (label, manifest []byte, err error) {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the base backup is truncated: %w", err)
		}
		switch h.Name {
		case "backup_label":
			label, err = io.ReadAll(t)
		case "backup_manifest":
			manifest, err = io.ReadAll(t)
		default:
			_, err = io.Copy(io.Discard, t)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the base backup is truncated: %w", err)
		}
	}
	if label == nil || manifest == nil {
		return nil, nil, errors.New("the base backup has no backup_label or no backup_manifest")
	}
	_, err = io.Copy(io.Discard, r)
	return label, manifest, err
}

// recordLSNs writes the base backup's begin and end in the WAL into the manifest.
func (b *builder) recordLSNs(label, manifest []byte) (err error) {
	match := startLocation.FindSubmatch(label)
	if match == nil {
		return fmt.Errorf("backup_label has no start location: %q", label)
	}
	if b.manifest.StartLSN, err = ParseLSN(string(match[1])); err != nil {
		return err
	}
	var ranges struct {
		WAL []struct {
			Timeline uint32
			End      LSN `json:"End-LSN"`
		} `json:"WAL-Ranges"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(manifest), &ranges); err != nil {
		return fmt.Errorf("backup_manifest can't be read: %w", err)
	}
	if len(ranges.WAL) == 0 {
		return errors.New("backup_manifest has no WAL range")
	}
	last := ranges.WAL[len(ranges.WAL)-1]
	b.manifest.Timeline, b.manifest.StopLSN = last.Timeline, last.End
	return nil
}

// archiveTimeout is how long the segment in which the base ends may take to arrive
// in the archive. PostgreSQL switches to the next segment at once, so this is the
// time for archive_command and the segments before this one.
const archiveTimeout = 2 * time.Minute

// stopSegment returns the segment in which the base backup ends.
func (m *Manifest) stopSegment() segment {
	return segment{m.Timeline, segmentOf(m.StopLSN-1, m.SegmentBytes)}
}

// waitArchived waits until the archive has the segment in which the base ends. If
// archiving does not work, a restore could reach no later moment.
func (b *builder) waitArchived(ctx context.Context, run func(context.Context, stack.Program) error) error {
	limit := b.repository.archiveTimeout
	if limit == 0 {
		limit = archiveTimeout
	}
	last, dir := b.manifest.stopSegment(), filepath.Join(b.repository.Dir, walFolder)
	name := last.name(b.manifest.SegmentBytes)
	for began := time.Now(); ; {
		for _, suffix := range []string{"", gz} {
			if _, err := os.Stat(filepath.Join(dir, name+suffix)); err == nil {
				return nil
			}
		}
		if time.Since(began) >= limit {
			break
		}
		select {
		case <-time.After(min(limit, 100*time.Millisecond)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	why := ""
	if failed, err := output(ctx, run, "psql", "-XAtc", sqlArchiver); err == nil && failed != "" {
		why = " (it fails at " + failed + ")"
	}
	return fmt.Errorf("segment %s did not arrive in %s within %v: archive_command does not work%s; see PostgreSQL's log", name, dir, limit, why)
}

const sqlArchiver = `SELECT last_failed_wal FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')`

// recordConsistentTime writes the time of the database's clock, which also stamps
// the commits, into the manifest.
func (b *builder) recordConsistentTime(ctx context.Context, run func(context.Context, stack.Program) error) error {
	answer, err := output(ctx, run, "psql", "-XAtc", `SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`)
	if err != nil {
		return err
	}
	b.manifest.Consistent, err = time.Parse(time.RFC3339Nano, answer)
	return err
}
