// Package backup creates, verifies and restores backups of a stack: a base backup
// of PostgreSQL beside an archive of its write-ahead log, for point-in-time
// recovery; a logical dump; a snapshot of Redis; configuration and certificates. It
// runs PostgreSQL's and Redis' own programs through a Runner.
//
// A verified backup was restored into a scratch server, where each room's
// sequence, the counts and the epoch were checked.
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

	"switchyard/internal/stack"
)

// A Repository is a folder of backups: sets/ with a folder for each backup, wal/
// with the archive that PostgreSQL itself fills, metrics/ for node_exporter. A lock
// on the folder lets one command work in it at a time.
type Repository struct {
	// Dir is the folder's path on this host.
	Dir    string
	Runner Runner
	// ServiceManager is only needed for Restore and Promote.
	ServiceManager ServiceManager
	// Keep is how many backups retention keeps, at least 1. The WAL from the oldest
	// of them on is kept, too.
	Keep int
	// Version is the version of this program for manifests.
	Version string
	Logger  *slog.Logger

	// freeSpace returns the free bytes of a folder's disk; nil means statfs.
	freeSpace func(dir string) (int64, error)
	// archiveTimeout replaces the constant of this name if it is not 0.
	archiveTimeout time.Duration
}

// ErrBusy says that another command works in the same folder.
var ErrBusy = errors.New("another backup, verify or restore is running")

// lock locks the folder. The kernel releases the lock if its holder dies.
func (repo *Repository) lock() (release func(), err error) {
	path := filepath.Join(repo.Dir, ".lock")
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
		// Close alone is not enough: a program that is just being started shares
		// the file until its exec.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		_ = f.Close()
	}, nil
}

// freeBytes returns how many bytes an unprivileged user may still write.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("read the free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // an int32 on 32-bit systems
}

// requireSpace returns an error if less than need bytes are free: a full disk would
// stop the WAL archive, too.
func (repo *Repository) requireSpace(need int64) error {
	free := repo.freeSpace
	if free == nil {
		free = freeBytes
	}
	have, err := free(repo.Dir)
	if err != nil {
		return err
	}
	if have < need {
		return fmt.Errorf("BACKUP_DIR: %s has %s free, and a backup may need %s: make room, or keep fewer with --keep", repo.Dir, Bytes(have), Bytes(need))
	}
	return nil
}

// Bytes is a size in bytes that prints with a unit.
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

// Options are the options of one backup.
type Options struct {
	// SkipDump leaves the logical dump out.
	SkipDump bool
}

// Create creates a backup, and then removes the backups beyond Keep. A failed
// backup leaves nothing behind.
func (repo *Repository) Create(ctx context.Context, o Options) (*Set, error) {
	release, err := repo.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	if err := repo.prepare(); err != nil {
		return nil, err
	}
	b := &builder{repository: repo, manifest: Manifest{Format: formatVersion, Started: time.Now().UTC(), Version: repo.Version}}
	b.manifest.Name = b.manifest.Started.Format(stampLayout)
	b.dir = filepath.Join(repo.Dir, setsFolder, partialPrefix+b.manifest.Name)
	final := filepath.Join(repo.Dir, setsFolder, b.manifest.Name)
	if _, err := os.Lstat(final); err == nil {
		return nil, fmt.Errorf("%s exists already: at most one backup can begin each second", final)
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the folder of the backup: %w", err)
	}
	if err := b.build(ctx, o); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	if err := os.Rename(b.dir, final); err != nil {
		return nil, errors.Join(fmt.Errorf("name the backup: %w", err), os.RemoveAll(b.dir))
	}
	if err := stack.SyncFolder(filepath.Dir(final)); err != nil {
		return nil, err
	}
	s, err := readSet(final)
	if err != nil {
		return nil, err
	}
	repo.Logger.Info("backup made", "name", s.Name, "size", Bytes(s.Size()).String(), "took", time.Since(b.manifest.Started).Round(time.Millisecond))
	// An error of these two does not invalidate the backup.
	if err := repo.applyRetention(); err != nil {
		repo.Logger.Warn("old backups were not removed", "error", err)
	}
	return s, repo.writeMetrics()
}

// prepare creates the folders, and removes the unfinished backups of killed
// commands.
func (repo *Repository) prepare() error {
	if err := os.MkdirAll(filepath.Join(repo.Dir, setsFolder), 0o700); err != nil {
		return fmt.Errorf("BACKUP_DIR: %w", err)
	}
	left, _ := filepath.Glob(filepath.Join(repo.Dir, setsFolder, partialPrefix+"*"))
	for _, dir := range left {
		repo.Logger.Warn("removing an unfinished backup", "folder", dir)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an unfinished backup: %w", err)
		}
	}
	return nil
}
