package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A restoredServer is PostgreSQL in a scratch container, restored from a backup set.
type restoredServer struct {
	repository *Repository
	set        *Set
	archive    *walArchive
	scratch    ScratchServer
	paths      Paths
	// replacesLive says that the data will replace the data of the live primary.
	replacesLive bool
	primary      string
}

// A target is where a recovery ends.
type target struct {
	// to is a point in time: the recovery includes transactions that were committed
	// before it. Zero means the end of the archive.
	to time.Time
	// timeline is the timeline to end on; 0 means the latest.
	timeline uint32
}

// dataDir returns the server's data directory.
func (r *restoredServer) dataDir() string { return r.paths.Dir + "/data" }

// run runs a program on the scratch server, in the environment that connects it to
// the restored server.
func (r *restoredServer) run(ctx context.Context, p stack.Program) error {
	p.Args = append([]string{"env", "PGHOST=" + r.paths.Dir, "PGPORT=5432", "PGDATABASE=" + r.set.Database}, p.Args...)
	return r.scratch.Run(ctx, p)
}

// unpackBase unpacks the base backup on the scratch server, and verifies it with
// PostgreSQL's own manifest.
func (r *restoredServer) unpackBase(ctx context.Context) error {
	path := filepath.Join(r.set.Dir, baseFile)
	f, err := os.Open(path)
	if err != nil {
		return &DamageError{path, "is missing"}
	}
	defer func() { _ = f.Close() }()
	err = r.scratch.Run(ctx, stack.Program{Stdin: f, Args: []string{
		"sh", "-c", "mkdir -m 700 " + shellQuote(r.dataDir()) + " && tar -xzf - -C " + shellQuote(r.dataDir()),
	}})
	if err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	if _, err := output(ctx, r.scratch.Run, "pg_verifybackup", "--exit-on-error", r.dataDir()); err != nil {
		return fmt.Errorf("%s does not match its backup_manifest: %w", path, err)
	}
	return nil
}

// startRecovery starts the server, and returns when it has replayed the archive up
// to the target and takes connections.
func (r *restoredServer) startRecovery(ctx context.Context, t target) error {
	options := r.serverOptions(t)
	quoted := make([]string, len(options))
	for i, o := range options {
		quoted[i] = "-c " + shellQuote(o)
	}
	// The server gets its own configuration: the live server's names ports, files and
	// libraries that the scratch server may not have.
	prepare := fmt.Sprintf(`cd %s && : > restore.conf && : > ident.conf && echo 'local all all trust' > hba.conf && : > data/recovery.signal && rm -f data/standby.signal`, shellQuote(r.paths.Dir))
	if err := r.scratch.Run(ctx, stack.Program{Args: []string{"sh", "-c", prepare}}); err != nil {
		return err
	}
	_, err := output(ctx, r.scratch.Run, "pg_ctl", "start", "--wait", "--timeout=43200", "--silent",
		"--pgdata="+r.dataDir(), "--log="+r.logPath(), "--options="+strings.Join(quoted, " "))
	if err == nil {
		// pg_ctl returns while the server is still replaying, before it takes
		// connections.
		_, err = output(ctx, r.scratch.Run, "sh", "-c", awaitScript, r.dataDir(), r.paths.Dir)
	}
	if err != nil {
		return r.startError(ctx, t, err)
	}
	return nil
}

// awaitScript returns when the server takes connections, and fails if it ends.
const awaitScript = `while pg_ctl status -D "$0" > /dev/null; do
  if pg_isready -q -h "$1" -p 5432; then exit 0; fi
  sleep 0.2
done
exit 1`

func (r *restoredServer) logPath() string { return r.paths.Dir + "/log" }

// serverOptions returns the server's settings for a recovery to the target.
func (r *restoredServer) serverOptions(t target) []string {
	folder := r.paths.Dir
	o := []string{
		"config_file=" + folder + "/restore.conf", "hba_file=" + folder + "/hba.conf", "ident_file=" + folder + "/ident.conf",
		"listen_addresses=", "port=5432", "unix_socket_directories=" + folder, "ssl=off",
		"hot_standby=off", "shared_preload_libraries=", "logging_collector=off", "log_destination=stderr",
		"primary_conninfo=", "primary_slot_name=", "synchronous_standby_names=", "lc_messages=C", "log_min_messages=log",
		"archive_cleanup_command=", "recovery_end_command=", "recovery_target=", "recovery_target_name=", "recovery_target_xid=", "recovery_target_lsn=",
		// For one client at a time and a long replay.
		"max_connections=20", "shared_buffers=128MB", "max_wal_size=2GB", "autovacuum=off",
		"restore_command=" + r.restoreCommand(),
		"recovery_target_action=promote", "recovery_target_inclusive=off",
	}
	timeline := "latest"
	if t.timeline != 0 {
		timeline = fmt.Sprint(t.timeline)
	}
	o = append(o, "recovery_target_timeline="+timeline)
	if !t.to.IsZero() {
		o = append(o, "recovery_target_time="+t.to.UTC().Format("2006-01-02 15:04:05.999999")+"+00")
	} else {
		o = append(o, "recovery_target_time=")
	}
	if !r.replacesLive {
		return append(o, "archive_mode=off", "fsync=off") // its data will be removed
	}
	// The files of the new timeline are staged until the data replace the live ones,
	// so that no later recovery follows a timeline that never served.
	return append(o, "archive_mode=on", "archive_command="+r.archiveCommand())
}

// restoreCommand returns the restore_command, which reads plain and compressed
// segments.
func (r *restoredServer) restoreCommand() string {
	a := r.paths.Archive
	return fmt.Sprintf(`if [ -f "%s/%%f.gz" ]; then gzip -dc "%[1]s/%%f.gz" > "%%p"; else cp "%[1]s/%%f" "%%p" 2>/dev/null; fi`, a)
}

// stagingDir returns the folder for the files of a new timeline. It is on the
// archive's disk, so that they can be moved into the archive by rename.
func (p Paths) stagingDir() string { return p.Archive + "/.restore" }

// archiveCommand returns the archive_command, which stages files in the form,
// compressed or not, that the archive has.
func (r *restoredServer) archiveCommand() string {
	s := r.paths.stagingDir()
	if r.archive.compressed() {
		return fmt.Sprintf(`gzip -c "%%p" > "%s/.%%f" && sync "%[1]s/.%%f" && mv "%[1]s/.%%f" "%[1]s/%%f.gz"`, s)
	}
	return fmt.Sprintf(`cp "%%p" "%s/.%%f" && sync "%[1]s/.%%f" && mv "%[1]s/.%%f" "%[1]s/%%f"`, s)
}

// archiveStagedScript moves the staged files, in $4, into the archive, $3. It never
// replaces a file there.
const archiveStagedScript = `for file in "$4"/*; do
  [ -e "$file" ] || continue
  to="$3/${file##*/}"
  if [ -e "$to" ]; then echo "$to exists already" >&2; exit 1; fi
  mv "$file" "$to"
done`

// removeTimelineScript removes the timeline that began with the data in $0 from the
// archive, $1, so that no later recovery follows it after the restored data were rejected.
const removeTimelineScript = `timeline() { pg_controldata "$1" | sed -n "s/^Latest checkpoint's TimeLineID: *//p"; }
began=$(LC_ALL=C timeline "$0")
was=
if [ -e .before-restore/PG_VERSION ]; then was=$(LC_ALL=C timeline .before-restore); fi
if [ "${began:?}" != "$was" ]; then rm -f "$1/$(printf %08X "$began")"*; fi`

// compressed reports whether the archive's segments are compressed.
func (a *walArchive) compressed() bool {
	for _, name := range a.files {
		return strings.HasSuffix(name, gz)
	}
	return false
}

var (
	// invalidRecord matches what PostgreSQL logs at a corrupt record. The normal end
	// of the WAL is "invalid record length at …: wanted 24, got 0".
	invalidRecord  = regexp.MustCompile(`(?m)^.*LOG:  (.*(?:incorrect resource manager data checksum|invalid magic number|unexpected pageaddr|incorrect prev-link|invalid resource manager ID|invalid info bits|invalid contrecord|there is no contrecord flag|invalid block_id|out-of-order block_id|record with incorrect|could not decompress|WAL file is from different).*)$`)
	lsnPattern     = regexp.MustCompile(`\b([0-9A-F]{1,8}/[0-9A-F]{1,8})\b`)
	redoDone       = regexp.MustCompile(`redo done at ([0-9A-F]+/[0-9A-F]+)`)
	lastCommitLine = regexp.MustCompile(`last completed transaction was at log time (.*)`)
	fatalLine      = regexp.MustCompile(`(?m)^.*(?:FATAL|PANIC):  (.*)$`)
)

// recentLog returns the last 64 KiB of the server's log output, or "".
func (r *restoredServer) recentLog(ctx context.Context) string {
	text, err := output(ctx, r.scratch.Run, "tail", "-c", "65536", r.logPath())
	if err != nil {
		return ""
	}
	return text
}

// startError returns the cause of a failed start: a damaged file, an archive that
// does not reach the target, or the server's own error.
func (r *restoredServer) startError(ctx context.Context, t target, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	log := r.recentLog(ctx)
	if damage := r.findDamage(log, t); damage != nil {
		return damage
	}
	if strings.Contains(log, "recovery ended before configured recovery target was reached") {
		last := "before the first commit after the backup"
		if m := lastCommitLine.FindStringSubmatch(log); m != nil {
			last = "with the commit at " + m[1]
		}
		return fmt.Errorf("--to %s: the archive ends %s: messages that were committed after that commit and before --to may be missing; restore --to latest restores all that the archive has", t.to.Format(time.RFC3339Nano), last)
	}
	if m := fatalLine.FindAllStringSubmatch(log, -1); m != nil {
		return fmt.Errorf("the scratch server can't start: %s", m[len(m)-1][1])
	}
	return fmt.Errorf("the scratch server can't start: %w", err)
}

// findDamage returns a DamageError for the file that stopped the replay, or nil: a
// segment with a record that the server found corrupt, a segment that can't be read,
// or one that is missing.
func (r *restoredServer) findDamage(log string, t target) error {
	c, err := r.chain(t)
	if err != nil {
		return err
	}
	var ended uint64
	if m := redoDone.FindStringSubmatch(log); m != nil {
		lsn, err := ParseLSN(m[1])
		if err != nil {
			return err
		}
		ended = segmentOf(lsn, r.set.SegmentBytes)
	}
	if m := invalidRecord.FindStringSubmatch(log); m != nil {
		number := ended
		if at := lsnPattern.FindString(m[1]); at != "" {
			lsn, err := ParseLSN(at)
			if err != nil {
				return err
			}
			number = segmentOf(lsn, r.set.SegmentBytes)
		}
		return r.archive.corrupt(r.segmentFile(c, number), "is corrupt: "+m[1])
	}
	for _, s := range c.segments {
		if err := r.archive.checkSegment(s, r.set.SystemID); err != nil {
			return err
		}
	}
	if c.missing != "" {
		return r.archive.corrupt(c.missing, fmt.Sprintf("is missing, but %d later segments exist", c.laterSegments))
	}
	return nil
}

// segmentFile returns the name of the chain's file with a segment number.
func (r *restoredServer) segmentFile(c chain, number uint64) string {
	i := slices.IndexFunc(c.segments, func(s segment) bool { return s.number == number })
	if i < 0 {
		return segment{r.set.Timeline, number}.name(r.set.SegmentBytes)
	}
	return r.archive.files[c.segments[i]]
}

// chain returns the segments that a recovery to the target may need.
func (r *restoredServer) chain(t target) (chain, error) {
	to := t.timeline
	if to == 0 {
		to = r.archive.latestTimeline(r.set.Timeline)
	}
	return r.archive.chain(r.set.StartLSN, r.set.Timeline, to)
}

// A replayResult is the end of a recovery.
type replayResult struct {
	endLSN     LSN
	lastCommit string
	segments   int
}

// checkReplay compares the end of the recovery with the end of the archive.
// PostgreSQL mistakes an unreadable segment for the end of the WAL, and starts
// without an error.
func (r *restoredServer) checkReplay(ctx context.Context, t target) (p replayResult, err error) {
	log := r.recentLog(ctx)
	c, err := r.chain(t)
	if err != nil {
		return p, err
	}
	answer, err := output(ctx, r.run, "psql", "-XAtc", "SELECT pg_last_wal_replay_lsn()")
	if err != nil {
		return p, err
	}
	if p.endLSN, err = ParseLSN(answer); err != nil {
		return p, err
	}
	if m := lastCommitLine.FindStringSubmatch(log); m != nil {
		p.lastCommit = m[1]
	}
	p.segments = len(c.segments)
	if !t.to.IsZero() { // the server itself fails if it does not reach the target
		return p, nil
	}
	if err := r.findDamage(log, t); err != nil {
		return p, err
	}
	if n := len(c.segments); n > 0 && segmentOf(p.endLSN, r.set.SegmentBytes) < c.segments[n-1].number {
		return p, fmt.Errorf("the replay ended at %s, in %s, but the archive reaches to %s",
			p.endLSN, r.segmentFile(c, segmentOf(p.endLSN, r.set.SegmentBytes)), r.archive.files[c.segments[n-1]])
	}
	return p, nil
}

// stop shuts the server down cleanly.
func (r *restoredServer) stop(ctx context.Context) error {
	_, err := output(ctx, r.scratch.Run, "pg_ctl", "stop", "--wait", "--timeout=600", "--mode=fast", "--silent", "--pgdata="+r.dataDir())
	return err
}

// A LogIntegrityError lists the inconsistencies of the restored log, and the
// messages of the backup that are missing from it.
type LogIntegrityError struct{ Findings []string }

func (e *LogIntegrityError) Error() string {
	return fmt.Sprintf("the restored log is inconsistent: %s", strings.Join(e.Findings, "; "))
}

// checkLog checks each room of the restored log, and compares it with the rooms at
// the time of the backup.
func (r *restoredServer) checkLog(ctx context.Context) (LogStats, error) {
	l, err := readLogStats(ctx, r.run)
	if err != nil {
		return l, err
	}
	findings, err := checkRooms(ctx, r.run)
	if err != nil {
		return l, err
	}
	if l.Epoch == "" && l.Messages > 0 {
		findings = append(findings, "there are messages, but no epoch")
	}
	missing, err := r.compareRooms(ctx, l)
	if err != nil {
		return l, err
	}
	if findings = append(findings, missing...); len(findings) > 0 {
		return l, &LogIntegrityError{findings}
	}
	return l, nil
}
