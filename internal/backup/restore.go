package backup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A RestoreRequest says what to restore.
type RestoreRequest struct {
	// To is the point in time: the restored database has all transactions that were
	// committed before it. Zero means all transactions in the archive.
	To time.Time
	// Timeline is the timeline to follow; 0 means the latest. Each restore and each
	// promotion begins a new timeline.
	Timeline uint32
	// Set is the name of the backup to start from; empty means the newest one before
	// To.
	Set string
	// Replace allows the restore to replace an existing database.
	Replace bool
	// Database, Redis and Configuration select the parts to restore.
	Database, Redis, Configuration bool
}

// A RestoreResult is the outcome of a restore.
type RestoreResult struct {
	Set *Set
	Log LogStats
	// LastCommit is the time of the last restored transaction.
	LastCommit string
	// Downtime is how long a database that ran before did not serve.
	Downtime time.Duration
	// Services are the Compose services that were started again.
	Services []string
	// ReplacedArchive is the archive of the files that the restored configuration
	// replaced.
	ReplacedArchive string
	// Configuration are the files that differed and were written.
	Configuration []string
}

// ErrDatabaseExists says that a restore without Replace found a database.
var ErrDatabaseExists = errors.New("there is already a database: restore --replace discards it")

// Restore restores parts of a stack. It builds and checks the database beside the
// live data before it touches that data. Then it swaps the two by rename, and undoes
// the swap if the restored server does not start.
func (repo *Repository) Restore(ctx context.Context, q RestoreRequest) (*RestoreResult, error) {
	release, err := repo.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	s, err := repo.chooseSet(q)
	if err != nil {
		return nil, err
	}
	repo.Logger.Info("restoring", "backup", s.Name, "to", describeTime(q.To))
	if err := s.checkFiles(ctx); err != nil {
		return nil, fmt.Errorf("backup %s: %w", s.Name, err)
	}
	out := &RestoreResult{Set: s}
	if q.Configuration {
		if err := repo.restoreConfiguration(s, out); err != nil {
			return nil, err
		}
		if err := repo.restoreCertificates(ctx, s); err != nil {
			return nil, err
		}
	}
	if q.Redis {
		if err := repo.restoreRedis(ctx, s, q.Replace); err != nil {
			return nil, err
		}
	}
	if q.Database {
		if err := repo.restoreDatabase(ctx, s, q, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// describeTime formats the time of a request.
func describeTime(to time.Time) string {
	if to.IsZero() {
		return "the end of the archive"
	}
	return to.UTC().Format(time.RFC3339Nano)
}

// chooseSet returns the set to start from.
func (repo *Repository) chooseSet(q RestoreRequest) (*Set, error) {
	if now := time.Now(); q.To.After(now) {
		return nil, fmt.Errorf("--to %s is in the future: it is %s now", describeTime(q.To), describeTime(now.Truncate(time.Second)))
	}
	if q.Set != "" {
		s, err := repo.FindSet(q.Set)
		if err == nil && !q.To.IsZero() && q.To.Before(s.Consistent) {
			return nil, fmt.Errorf("--to %s is before the backup %s became consistent at %s: name an older one, or none", describeTime(q.To), s.Name, describeTime(s.Consistent))
		}
		return s, err
	}
	sets, damaged := repo.Sets()
	for _, s := range slices.Backward(sets) {
		if q.To.IsZero() || !s.Consistent.After(q.To) {
			return s, nil
		}
	}
	switch {
	case len(sets) > 0:
		return nil, fmt.Errorf("--to %s is before the oldest backup, %s, which became consistent at %s: nothing before that can be restored", describeTime(q.To), sets[0].Name, describeTime(sets[0].Consistent))
	case len(damaged) > 0:
		return nil, errors.Join(damaged...)
	}
	return nil, fmt.Errorf("there is no backup in %s", repo.Dir)
}

// restoreDatabase restores the database of the set's stack.
func (repo *Repository) restoreDatabase(ctx context.Context, s *Set, q RestoreRequest, out *RestoreResult) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	services, err := repo.ServiceManager.Services(ctx)
	if err != nil {
		return err
	}
	primary, err := repo.ServiceManager.Primary()
	if err != nil {
		return err
	}
	r, err := repo.newRestoredServer(ctx, s, false)
	if err != nil {
		return err
	}
	r.primary = primary
	err = r.replaceDatabase(ctx, q, services, out)
	return errors.Join(err, r.close())
}

// replaceDatabase builds the database beside the live one and replaces that, or
// continues a restore that was interrupted during the swap.
func (r *restoredServer) replaceDatabase(ctx context.Context, q RestoreRequest, services map[string]bool, out *RestoreResult) error {
	exists, unfinished, err := r.inspectLive(ctx)
	if err != nil {
		return err
	}
	request := restoreID(q, r.set)
	if unfinished != "" && unfinished != request {
		return fmt.Errorf("restore %s was interrupted while it replaced the data: run that one again before another one", unfinished)
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
		r.repository.Logger.Warn("continuing a restore that was interrupted while it replaced the data", "restore", unfinished)
	}
	return r.swapData(ctx, request, unfinished == "", services, out)
}

// restoreID identifies a restore by its flags on the command line.
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

// inspectLiveScript prints whether live data, in $0, exist. A restore can only be
// continued if it has moved the old data to .before-restore, has recorded its id,
// and has not moved its own data into their place yet. In any other state
// .before-restore is a leftover, which stays until the next restore has checked its
// own data.
const inspectLiveScript = `cd "${0%/*}" && rm -rf .replaced || exit
if [ -e .before-restore ] && [ ! -e "$0/PG_VERSION" ]; then
  if [ -s .restore-request ] && [ -e .restore/data/PG_VERSION ]; then echo "unfinished $(cat .restore-request)"; exit; fi
  # The restore can't be continued: put the old data back.
  if [ -e "$0" ]; then rmdir "$0" || exit; fi
  rmdir .before-restore 2>/dev/null || mv .before-restore "$0" || exit
fi
rm -f .restore-request
if [ -e "$0/PG_VERSION" ]; then echo there; fi`

// inspectLive reports whether the primary has a database, and returns the id of a
// restore that was interrupted in its last step, or "".
func (r *restoredServer) inspectLive(ctx context.Context) (exists bool, unfinished string, err error) {
	answer, err := output(ctx, r.scratch.Run, "sh", "-c", inspectLiveScript, r.paths.LiveData)
	unfinished, _ = strings.CutPrefix(answer, "unfinished ")
	if unfinished == answer {
		unfinished = ""
	}
	return answer == "there", unfinished, err
}

// build builds the database on the scratch server and checks it.
func (r *restoredServer) build(ctx context.Context, t target, out *RestoreResult) error {
	if t.to.IsZero() {
		// The whole archive is needed: find a damaged file before the long work.
		c, err := r.chain(t)
		if err != nil {
			return err
		}
		if c.missing != "" {
			return r.archive.corrupt(c.missing, fmt.Sprintf("is missing, but %d later segments exist", c.laterSegments))
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
	// A restored database is an older state, whatever DATABASE_TRUST_FAILOVER says: without
	// a fingerprint the next node that connects begins a new epoch.
	if _, err := output(ctx, r.run, "psql", "-Xqc", "UPDATE meta SET fingerprint = ''"); err != nil {
		return err
	}
	return r.stop(ctx)
}

// swapScript replaces the live data ($0) with the data of the scratch server, and
// records the id of the restore. A fresh restore first removes what an earlier one
// left. If the script is interrupted anywhere, it can be run again.
const swapScript = `set -e
cd "${0%/*}"
if [ "$2" = fresh ]; then
  for file in "$4"/*; do
    if [ -e "$3/${file##*/}" ]; then echo "$3/${file##*/} exists already" >&2; exit 1; fi
  done
  if [ -e .before-restore ]; then mv .before-restore .replaced; rm -rf .replaced; fi
  printf '%s\n' "$1" > .restore-request
  sync
  if [ -e "$0" ]; then mv "$0" .before-restore; else mkdir .before-restore; fi
fi
if [ -e "$0" ]; then echo "$0 exists again" >&2; exit 1; fi
` + archiveStagedScript + `
mv .restore/data "$0"
sync`

// undoSwapScript undoes swapScript.
const undoSwapScript = `set -e
cd "${0%/*}"
` + removeTimelineScript + `
rm -rf .restore/data
mv "$0" .restore/data
rmdir .before-restore 2>/dev/null || mv .before-restore "$0"
rm -f .restore-request
sync`

// removeOldDataScript removes the replaced data. Once its first step is done, the
// restore is finished.
const removeOldDataScript = `cd "${0%/*}" && rm -f .restore-request && mv .before-restore .replaced && sync && rm -rf .replaced`

// cleanUpScript stops the scratch server beside the live data, and removes its
// folder, unless an interrupted restore needs it to continue.
const cleanUpScript = `pg_ctl stop -s -m immediate -D "$0/data" 2>/dev/null
cd "${0%/*}" || exit
if [ -s .restore-request ] && [ -e .before-restore ] && [ -e "$0/data/PG_VERSION" ]; then exit 0; fi
rm -rf "$0" "$1"`

// swapData stops the services that use the database, replaces the data, and starts
// the services that ran before, except for the standby: it follows the replaced
// timeline.
func (r *restoredServer) swapData(ctx context.Context, request string, fresh bool, services map[string]bool, out *RestoreResult) error {
	manager, logger := r.repository.ServiceManager, r.repository.Logger
	var apps, stop []string
	for _, name := range sortedKeys(services) {
		if strings.HasPrefix(name, "app_") && services[name] {
			apps = append(apps, name)
		}
	}
	stop = append(stop, apps...)
	for _, name := range []string{stack.PostgresService, stack.PostgresReplicaService} {
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
	mode := "continued"
	if fresh {
		mode = "fresh"
	}
	if _, err := output(ctx, r.scratch.Run, "sh", "-c", swapScript, r.paths.LiveData, request, mode, r.paths.Archive, r.paths.stagingDir()); err != nil {
		return fmt.Errorf("replace the data; run the same restore again to continue: %w", err)
	}
	logger.Info("starting", "services", r.primary)
	if err := r.startPrimary(ctx, out); err != nil {
		_ = manager.Stop(ctx, r.primary)
		_, undoErr := output(ctx, r.scratch.Run, "sh", "-c", undoSwapScript, r.paths.LiveData, r.paths.Archive)
		if undoErr == nil && services[r.primary] {
			undoErr = manager.Start(ctx, append([]string{r.primary}, apps...)...)
		}
		if undoErr != nil {
			return fmt.Errorf("the restored server does not start: %w; the old data are beside %s, in .before-restore: %w", err, r.paths.LiveData, undoErr)
		}
		return fmt.Errorf("the restored server does not start, and the old data are back: %w", err)
	}
	out.Downtime = time.Since(began)
	if _, err := output(ctx, r.scratch.Run, "sh", "-c", removeOldDataScript, r.paths.LiveData); err != nil {
		logger.Warn("the replaced data could not be removed", "error", err)
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

// startPrimary starts the restored server as the primary, and checks its rooms.
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
	if service == stack.PostgresService {
		return stack.PostgresReplicaService
	}
	return stack.PostgresService
}

// path returns the path of a file of the set.
func (s *Set) path(name string) string { return filepath.Join(s.Dir, name) }
