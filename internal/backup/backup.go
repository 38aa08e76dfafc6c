// Package backup makes, proves and restores backups of a stack: a base backup
// of PostgreSQL beside an archive of its write-ahead log, so that any point in
// time can be brought back; a logical dump; a snapshot of Redis; configuration
// and certificates. It drives PostgreSQL's and Redis' own programs where these
// run, by way of a Site.
//
// A backup counts once it was verified: restored into a scratch server where
// each room's sequence, the counts and the epoch are looked at.
package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A Repository is a folder of backups: sets/ with a folder a backup, wal/ with the
// archive that PostgreSQL itself fills, metrics/ for node_exporter.
type Repository struct {
	// Dir is the folder, as this host sees it.
	Dir    string
	Runner Runner
	// ServiceManager is needed for Restore and Promote only.
	ServiceManager ServiceManager
	// Keep is how many backups retention leaves, 1 at least; with them stays the
	// WAL from the oldest one on.
	Keep int
	// Version is written into manifests.
	Version string
	Logger  *slog.Logger

	// free returns the free bytes of a folder's disk; nil means statfs.
	freeSpace func(dir string) (int64, error)
	// archiveTimeout is another one than that of the constant; 0 means that.
	archiveTimeout time.Duration
}

// ErrBusy says that another command is at work in the same folder.
var ErrBusy = errors.New("another backup, verify or restore is under way")

// lock keeps two commands apart. The kernel frees it when its holder dies.
func (v *Repository) lock() (release func(), err error) {
	path := filepath.Join(v.Dir, ".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("BACKUP_DIR: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: it holds %s", ErrBusy, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() {
		// Not by closing alone: a program that is just being started has the file
		// too, until it becomes another one.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		_ = f.Close()
	}, nil
}

// freeBytes returns what an unprivileged user may still write.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("look for free space in %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// requireSpace refuses to begin what can't end: a disk that fills up midway stops the
// WAL archive too.
func (v *Repository) requireSpace(need int64) error {
	free := v.freeSpace
	if free == nil {
		free = freeBytes
	}
	have, err := free(v.Dir)
	if err != nil {
		return err
	}
	if have < need {
		return fmt.Errorf("BACKUP_DIR: %s has %s free, and a backup may need %s: make room, or keep fewer with --keep", v.Dir, Bytes(have), Bytes(need))
	}
	return nil
}

// Bytes is a size that prints for people.
type Bytes int64

func (b Bytes) String() string {
	const unit = 1024
	if b < unit {
		return fmt.Sprintf("%d B", int64(b))
	}
	value, suffix := float64(b)/unit, "KMGTPE"
	for value >= unit && len(suffix) > 1 {
		value, suffix = value/unit, suffix[1:]
	}
	return fmt.Sprintf("%.1f %ciB", value, suffix[0])
}

// Options are those of one backup.
type Options struct {
	// SkipDump leaves the logical dump out.
	SkipDump bool
}

// Create makes a backup, then removes those beyond Keep. What is unfinished is
// removed when it fails.
func (v *Repository) Create(ctx context.Context, o Options) (*Set, error) {
	release, err := v.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	if err := v.prepare(); err != nil {
		return nil, err
	}
	m := &builder{repository: v, manifest: Manifest{Format: formatVersion, Started: time.Now().UTC(), Version: v.Version}}
	m.manifest.Name = m.manifest.Started.Format(stampLayout)
	m.dir = filepath.Join(v.Dir, setsFolder, partialPrefix+m.manifest.Name)
	final := filepath.Join(v.Dir, setsFolder, m.manifest.Name)
	if _, err := os.Lstat(final); err == nil {
		return nil, fmt.Errorf("%s is there already: one backup a second", final)
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the backup: %w", err)
	}
	if err := m.build(ctx, o); err != nil {
		return nil, errors.Join(err, os.RemoveAll(m.dir))
	}
	if err := os.Rename(m.dir, final); err != nil {
		return nil, errors.Join(fmt.Errorf("name the backup: %w", err), os.RemoveAll(m.dir))
	}
	if err := syncFolder(filepath.Dir(final)); err != nil {
		return nil, err
	}
	s, err := readSet(final)
	if err != nil {
		return nil, err
	}
	v.Logger.Info("backup made", "name", s.Name, "size", Bytes(s.Size()).String(), "took", time.Since(m.manifest.Started).Round(time.Millisecond))
	// The backup is good whatever these two say.
	if err := v.applyRetention(); err != nil {
		v.Logger.Warn("old backups were not removed", "error", err)
	}
	return s, v.writeMetrics()
}

// prepare makes the folders, and removes what a killed command left.
func (v *Repository) prepare() error {
	if err := os.MkdirAll(filepath.Join(v.Dir, setsFolder), 0o700); err != nil {
		return fmt.Errorf("BACKUP_DIR: %w", err)
	}
	left, _ := filepath.Glob(filepath.Join(v.Dir, setsFolder, partialPrefix+"*"))
	for _, dir := range left {
		v.Logger.Warn("removing a backup that was never finished", "folder", dir)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an unfinished backup: %w", err)
		}
	}
	return nil
}
