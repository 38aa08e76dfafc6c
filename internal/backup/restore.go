package backup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A RestoreRequest says what to bring back.
type RestoreRequest struct {
	// To is the point in time: what was committed before it is kept. Zero means
	// all that the archive has.
	To time.Time
	// Timeline is which life of the database to follow, where an earlier restore
	// made a second one; 0 means the latest.
	Timeline uint32
	// Set names the backup to begin with; empty means the newest that serves.
	Set string
	// Replace is the explicit word that a database which is there may go.
	Replace bool
	// Database, Redis and Configuration say what to restore.
	Database, Redis, Configuration bool
}

// A RestoreResult says what a restore brought.
type RestoreResult struct {
	Set *Set
	Log LogStats
	// LastCommit is when the last transaction was committed that is there.
	LastCommit string
	// Downtime is how long the database did not serve, if it did before.
	Downtime time.Duration
	// Services are those that were started again.
	Services []string
	// ReplacedArchive is the archive with what the restored configuration replaced.
	ReplacedArchive string
	// Configuration are the files that differed and were written.
	Configuration []string
}

// ErrDatabaseExists refuses to restore over a database without the explicit word.
var ErrDatabaseExists = errors.New("there is a database already: restore --replace gives it up")

// Restore brings a stack back. The database is rebuilt and examined beside the
// data that are there, before any of these is touched; they give way by rename,
// and come back when the restored server does not start.
func (v *Repository) Restore(ctx context.Context, q RestoreRequest) (*RestoreResult, error) {
	release, err := v.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	s, err := v.chooseSet(q)
	if err != nil {
		return nil, err
	}
	v.Logger.Info("restoring", "backup", s.Name, "to", describeTime(q.To))
	if err := s.checkFiles(ctx); err != nil {
		return nil, fmt.Errorf("backup %s: %w", s.Name, err)
	}
	out := &RestoreResult{Set: s}
	if q.Configuration {
		if err := v.restoreConfiguration(s, out); err != nil {
			return nil, err
		}
		if err := v.restoreCertificates(ctx, s); err != nil {
			return nil, err
		}
	}
	if q.Redis {
		if err := v.restoreRedis(ctx, s, q.Replace); err != nil {
			return nil, err
		}
	}
	if q.Database {
		if err := v.restoreDatabase(ctx, s, q, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func describeTime(to time.Time) string {
	if to.IsZero() {
		return "the end of the archive"
	}
	return to.UTC().Format(time.RFC3339Nano)
}

// chooseSet returns the set to begin with.
func (v *Repository) chooseSet(q RestoreRequest) (*Set, error) {
	if now := time.Now(); q.To.After(now) {
		return nil, fmt.Errorf("--to %s lies in the future: it is %s now", describeTime(q.To), describeTime(now.Truncate(time.Second)))
	}
	if q.Set != "" {
		s, err := v.FindSet(q.Set)
		if err == nil && !q.To.IsZero() && q.To.Before(s.Consistent) {
			return nil, fmt.Errorf("--to %s is before the backup %s was consistent, at %s: name an older one, or none", describeTime(q.To), s.Name, describeTime(s.Consistent))
		}
		return s, err
	}
	sets, damaged := v.Sets()
	for _, s := range slices.Backward(sets) {
		if q.To.IsZero() || !s.Consistent.After(q.To) {
			return s, nil
		}
	}
	switch {
	case len(sets) > 0:
		return nil, fmt.Errorf("--to %s is before the oldest backup, %s, was consistent, at %s: nothing before that can be brought back", describeTime(q.To), sets[0].Name, describeTime(sets[0].Consistent))
	case len(damaged) > 0:
		return nil, errors.Join(damaged...)
	}
	return nil, fmt.Errorf("there is no backup in %s", v.Dir)
}

func (v *Repository) restoreDatabase(ctx context.Context, s *Set, q RestoreRequest, out *RestoreResult) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	services, err := v.ServiceManager.Services(ctx)
	if err != nil {
		return err
	}
	primary, err := v.ServiceManager.Primary()
	if err != nil {
		return err
	}
	r, err := v.newRestoredServer(ctx, s, false)
	if err != nil {
		return err
	}
	r.primary = primary
	err = r.replaceDatabase(ctx, q, services, out)
	return errors.Join(err, r.close())
}

// replaceDatabase rebuilds the database beside the one that is there, and puts it into
// its place.
func (r *restoredServer) replaceDatabase(ctx context.Context, q RestoreRequest, services map[string]bool, out *RestoreResult) error {
	exists, unfinished, err := r.inspectLive(ctx)
	if err != nil {
		return err
	}
	request := restoreID(q, r.set)
	if unfinished != "" && unfinished != request {
		return fmt.Errorf("restore %s was cut short while the data changed places: run that one again before another one", unfinished)
	}
	if (exists || services[r.primary]) && !q.Replace && unfinished == "" {
		state := "stopped"
		if services[r.primary] {
			state = "running"
		}
		return fmt.Errorf("%s (%s, in %s): %w", r.primary, state, r.paths.LiveData, ErrDatabaseExists)
	}
	if unfinished == "" {
		if err := r.build(ctx, target{to: q.To, timeline: q.Timeline}, out); err != nil {
			return err
		}
	} else {
		r.repository.Logger.Warn("going on with a restore that was cut short while it changed the data's places", "restore", unfinished)
	}
	return r.switchOver(ctx, request, unfinished == "", services, out)
}

// restoreID says which restore this is, as it is asked for on a command line.
func restoreID(q RestoreRequest, s *Set) string {
	to := "latest"
	if !q.To.IsZero() {
		to = q.To.UTC().Format(time.RFC3339Nano)
	}
	id := "--to " + to + " --backup " + s.Name
	if q.Timeline != 0 {
		id += fmt.Sprintf(" --timeline %d", q.Timeline)
	}
	return id
}

// inspectLiveScript says what there is in the live data's place. Only a restore that
// has taken away what was there, has written down which one it is, and has not
// put its own data there yet can go on; anything else that lies in
// .before-restore is left over, until the next restore is sure of its own data.
const inspectLiveScript = `cd "${0%/*}" && rm -rf .replaced || exit
if [ -e .before-restore ] && [ ! -e "$0/PG_VERSION" ]; then
  if [ -s .restore-request ] && [ -e .restore/data/PG_VERSION ]; then echo "unfinished $(cat .restore-request)"; exit; fi
  # There is nothing to go on with: what was there comes back.
  if [ -e "$0" ]; then rmdir "$0" || exit; fi
  rmdir .before-restore 2>/dev/null || mv .before-restore "$0" || exit
fi
rm -f .restore-request
if [ -e "$0/PG_VERSION" ]; then echo there; fi`

// inspectLive says whether the primary has a database, and which restore, if
// any, was cut short in its last step.
func (r *restoredServer) inspectLive(ctx context.Context) (exists bool, unfinished string, err error) {
	answer, err := output(ctx, r.scratch.Run, "sh", "-c", inspectLiveScript, r.paths.LiveData)
	unfinished, _ = strings.CutPrefix(answer, "unfinished ")
	if unfinished == answer {
		unfinished = ""
	}
	return answer == "there", unfinished, err
}

// build makes the database on the bench and examines it.
func (r *restoredServer) build(ctx context.Context, t target, out *RestoreResult) error {
	if t.to.IsZero() {
		// All is asked for: a file that is damaged is told before any work.
		c, err := r.chain(t)
		if err != nil {
			return err
		}
		if c.missing != "" {
			return r.archive.corrupt(c.missing, fmt.Sprintf("is missing, and %d later segments are there", c.laterSegments))
		}
		for _, s := range c.segments {
			if err := r.archive.checkSegment(s, r.set.SystemID); err != nil {
				return err
			}
		}
	}
	if _, err := output(ctx, r.scratch.Run, "sh", "-c", `rm -rf "$0" "$1" && mkdir "$1"`, r.dataDir(), r.paths.stagingDir()); err != nil {
		return err
	}
	if err := r.unpackBase(ctx); err != nil {
		return err
	}
	if err := r.startRecovery(ctx, t); err != nil {
		return err
	}
	p, err := r.checkReplay(ctx, t)
	if err != nil {
		return err
	}
	if out.Log, err = r.checkLog(ctx); err != nil {
		return err
	}
	out.LastCommit = p.lastCommit
	// Whatever an operator vouched for about failovers, this is an older state:
	// the next node that connects begins a new epoch.
	if _, err := output(ctx, r.run, "psql", "-Xqc", "UPDATE meta SET fingerprint = ''"); err != nil {
		return err
	}
	return r.stop(ctx)
}

// swapScript gives the place of the live data to the bench's, and writes down
// for which restore. A fresh one first forgets what an earlier one left; cut
// short anywhere, it goes on when it is run again.
const swapScript = `set -e
cd "${0%/*}"
if [ "$2" = fresh ]; then
  for file in "$4"/*; do
    if [ -e "$3/${file##*/}" ]; then echo "$3/${file##*/} came meanwhile" >&2; exit 1; fi
  done
  if [ -e .before-restore ]; then mv .before-restore .replaced; rm -rf .replaced; fi
  printf '%s\n' "$1" > .restore-request
  sync
  if [ -e "$0" ]; then mv "$0" .before-restore; else mkdir .before-restore; fi
fi
if [ -e "$0" ]; then echo "$0 is there again" >&2; exit 1; fi
` + archiveStagedScript + `
mv .restore/data "$0"
sync`

// undoSwapScript undoes it.
const undoSwapScript = `set -e
cd "${0%/*}"
` + removeTimelineScript + `
rm -rf .restore/data
mv "$0" .restore/data
rmdir .before-restore 2>/dev/null || mv .before-restore "$0"
rm -f .restore-request
sync`

// removeOldDataScript removes what was there before. The first step is the one that
// counts: from then on the restore is no unfinished one.
const removeOldDataScript = `cd "${0%/*}" && rm -f .restore-request && mv .before-restore .replaced && sync && rm -rf .replaced`

// cleanUpScript ends what runs on a bench beside live data, and removes its folder
// but where a restore needs it to go on.
const cleanUpScript = `pg_ctl stop -s -m immediate -D "$0/data" 2>/dev/null
cd "${0%/*}" || exit
if [ -s .restore-request ] && [ -e .before-restore ] && [ -e "$0/data/PG_VERSION" ]; then exit 0; fi
rm -rf "$0" "$1"`

// switchOver stops what uses the database, puts the restored one into its
// place, and starts what ran before. A replica follows the old life of the
// database, and stays stopped.
func (r *restoredServer) switchOver(ctx context.Context, request string, fresh bool, services map[string]bool, out *RestoreResult) error {
	manager, logger := r.repository.ServiceManager, r.repository.Logger
	var apps, stop []string
	for _, name := range sortedKeys(services) {
		if strings.HasPrefix(name, "app_") && services[name] {
			apps = append(apps, name)
		}
	}
	stop = append(stop, apps...)
	for _, name := range []string{PostgresService, PostgresReplicaService} {
		if services[name] {
			stop = append(stop, name)
		}
	}
	began := time.Now()
	if len(stop) > 0 {
		logger.Info("stopping", "services", strings.Join(stop, " "))
		if err := manager.Stop(ctx, stop...); err != nil {
			return err
		}
	}
	mode := "goes on"
	if fresh {
		mode = "fresh"
	}
	if _, err := output(ctx, r.scratch.Run, "sh", "-c", swapScript, r.paths.LiveData, request, mode, r.paths.Archive, r.paths.stagingDir()); err != nil {
		return fmt.Errorf("put the restored data into their place; run the same restore again to go on: %w", err)
	}
	logger.Info("starting", "services", r.primary)
	if err := r.startPrimary(ctx, out); err != nil {
		_ = manager.Stop(ctx, r.primary)
		_, undoErr := output(ctx, r.scratch.Run, "sh", "-c", undoSwapScript, r.paths.LiveData, r.paths.Archive)
		if undoErr == nil && services[r.primary] {
			undoErr = manager.Start(ctx, append([]string{r.primary}, apps...)...)
		}
		if undoErr != nil {
			return fmt.Errorf("the restored server does not start: %w; what was there before is beside %s, in .before-restore: %w", err, r.paths.LiveData, undoErr)
		}
		return fmt.Errorf("the restored server does not start, and what was there before is back: %w", err)
	}
	out.Downtime = time.Since(began)
	if _, err := output(ctx, r.scratch.Run, "sh", "-c", removeOldDataScript, r.paths.LiveData); err != nil {
		logger.Warn("what was there before the restore could not be removed", "error", err)
	}
	out.Services = append([]string{r.primary}, apps...)
	if len(apps) > 0 {
		logger.Info("starting", "services", strings.Join(apps, " "))
		if err := manager.Start(ctx, apps...); err != nil {
			return fmt.Errorf("the database is restored; the service does not start: %w", err)
		}
	}
	if other := otherPostgres(r.primary); services[other] {
		logger.Warn("the standby follows the database that was replaced, and stays stopped: remove its volume and start it", "service", other)
	}
	return nil
}

// startPrimary starts the restored server as what it is from now on, and looks
// at it once more.
func (r *restoredServer) startPrimary(ctx context.Context, out *RestoreResult) error {
	if err := r.repository.ServiceManager.Start(ctx, r.primary); err != nil {
		return err
	}
	run := runOn(r.repository.Runner, r.primary)
	findings, err := checkRooms(ctx, run)
	if err != nil {
		return err
	}
	if len(findings) > 0 {
		return &LogIntegrityError{findings}
	}
	out.Log, err = readLogStats(ctx, run)
	return err
}

// otherPostgres returns the other PostgreSQL of the stack.
func otherPostgres(service string) string {
	if service == PostgresService {
		return PostgresReplicaService
	}
	return PostgresService
}

// path returns the path of one of a set's files.
func (s *Set) path(name string) string { return filepath.Join(s.Dir, name) }
