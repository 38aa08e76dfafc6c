package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// readConfiguration reads the packed configuration to its end, and calls visit, if
// it is not nil, for each entry.
func readConfiguration(path string, visit func(*tar.Header, []byte) error) (entries int, err error) {
	r, err := openGzip(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	for t := tar.NewReader(r); ; entries++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(t)
		}
		if err != nil {
			return entries, &DamageError{path, fmt.Sprintf("is corrupt: %v", err)}
		}
		if visit != nil {
			if err := visit(h, b); err != nil {
				return entries, err
			}
		}
	}
}

// readRestorable reads the configuration like readConfiguration, except for the
// folder state: the primary and the live color may have changed since the backup.
func (s *Set) readRestorable(state string, visit func(*tar.Header, []byte) error) error {
	_, err := readConfiguration(s.path(configFile), func(h *tar.Header, b []byte) error {
		if path := hostPath(h); state != "" && (path == state || strings.HasPrefix(path, state+"/")) {
			return nil
		}
		return visit(h, b)
	})
	return err
}

// restoreConfiguration writes the files that differ from those of the set. It first
// packs the files that it replaces into an archive.
func (repo *Repository) restoreConfiguration(s *Set, out *RestoreResult) error {
	state := repo.Runner.StateDir()
	changed, err := s.changedPaths(state)
	if err != nil || len(changed) == 0 {
		return err
	}
	out.ReplacedArchive = filepath.Join(repo.Dir, "configuration-before-"+time.Now().UTC().Format(stampLayout)+".tar.gz")
	var old bytes.Buffer
	pack := gzip.NewWriter(&old)
	t := tar.NewWriter(pack)
	for _, path := range changed {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().IsRegular() {
			err = addFile(t, path, "", info)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("save %s: %w", path, err)
		}
	}
	if err := errors.Join(t.Close(), pack.Close()); err != nil {
		return err
	}
	if err := stack.WriteFile(out.ReplacedArchive, old.Bytes(), 0o600); err != nil {
		return err
	}
	err = s.readRestorable(state, func(h *tar.Header, b []byte) error {
		if err := restoreEntry(h, b); err != nil {
			return fmt.Errorf("restore %s (the replaced files are in %s): %w", h.Name, out.ReplacedArchive, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	left, err := s.changedPaths(state)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("after the restore %s still differs from the backup", left[0])
	}
	out.Configuration = changed
	return err
}

// changedPaths returns the files of the configuration that are missing or differ
// from the backup.
func (s *Set) changedPaths(state string) (paths []string, err error) {
	err = s.readRestorable(state, func(h *tar.Header, b []byte) error {
		path := hostPath(h)
		switch h.Typeflag {
		case tar.TypeReg:
			now, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("read the configuration: %w", err)
			}
			if err != nil || !bytes.Equal(now, b) {
				paths = append(paths, path)
			}
		case tar.TypeSymlink:
			if now, err := os.Readlink(path); err != nil || now != h.Linkname {
				paths = append(paths, path)
			}
		}
		return nil
	})
	return paths, err
}

// hostPath returns the path of an entry on this host.
func hostPath(h *tar.Header) string { return filepath.Clean("/" + h.Name) }

// restoreEntry writes an entry that is missing or differs. It replaces a file by
// rename, so that a program that watches the folder never reads half of it.
func restoreEntry(h *tar.Header, b []byte) error {
	path := hostPath(h)
	info := h.FileInfo()
	switch h.Typeflag {
	case tar.TypeDir:
		err := os.Mkdir(path, info.Mode().Perm())
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err == nil {
			err = os.Chown(path, h.Uid, h.Gid)
		}
		return err
	case tar.TypeSymlink:
		if now, err := os.Readlink(path); err == nil && now == h.Linkname {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Symlink(h.Linkname, path)
	case tar.TypeReg:
		now, err := os.ReadFile(path)
		if err == nil && bytes.Equal(now, b) {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := stack.WriteFile(path, b, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Chown(path, h.Uid, h.Gid)
	}
	return nil
}

// restoreCertificates unpacks the certificates of Let's Encrypt in Traefik's folder.
func (repo *Repository) restoreCertificates(ctx context.Context, s *Set) error {
	if _, has := s.file(acmeFile); !has {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	f, err := os.Open(s.path(acmeFile))
	if err != nil {
		return fmt.Errorf("read the certificates: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := repo.Runner.Run(ctx, stack.TraefikService, stack.Program{Args: []string{"tar", "-xf", "-", "-C", acmeFolder}, Stdin: f}); err != nil {
		return fmt.Errorf("restore the certificates: %w", err)
	}
	// Traefik reads them only when it starts.
	if err := repo.ServiceManager.Stop(ctx, stack.TraefikService); err != nil {
		return err
	}
	return repo.ServiceManager.Start(ctx, stack.TraefikService)
}

// restoreRedisScript reads the snapshot from standard input. A Redis with an
// append-only file ignores snapshots, but it reads a snapshot under the name of the
// old single append-only file, and converts it.
const restoreRedisScript = `set -e
cd "$0"
cat > .restore.rdb
rm -rf appendonlydir dump.rdb appendonly.aof
if [ "$1" = aof ]; then mv .restore.rdb appendonly.aof; else mv .restore.rdb dump.rdb; fi
sync`

// restoreRedis replaces Redis' data by the snapshot.
func (repo *Repository) restoreRedis(ctx context.Context, s *Set, replace bool) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	if _, has := s.file(redisFile); !has {
		return fmt.Errorf("backup %s has no snapshot of Redis", s.Name)
	}
	if !replace {
		return fmt.Errorf("%s: the present sessions would be lost: restore --redis needs --replace", stack.RedisService)
	}
	run := runOn(repo.Runner, stack.RedisService)
	answer, err := output(ctx, run, "redis-cli", "CONFIG", "GET", "appendonly")
	if err != nil {
		return fmt.Errorf("read the settings of Redis, which must run: %w", err)
	}
	dir, err := output(ctx, run, "redis-cli", "CONFIG", "GET", "dir")
	if err != nil {
		return err
	}
	mode := "rdb"
	if strings.HasSuffix(answer, "yes") {
		mode = "aof"
	}
	_, folder, _ := strings.Cut(dir, "\n")
	f, err := os.Open(s.path(redisFile))
	if err != nil {
		return fmt.Errorf("read the snapshot of Redis: %w", err)
	}
	defer func() { _ = f.Close() }()
	// Redis must not save its own data over the restored data when it stops.
	if _, err := output(ctx, run, "redis-cli", "CONFIG", "SET", "save", ""); err != nil {
		return err
	}
	err = run(ctx, stack.Program{Args: []string{"sh", "-c", restoreRedisScript, folder, mode}, Stdin: f})
	if err != nil {
		return err
	}
	// Redis reads the restored data when it starts again.
	if err := repo.ServiceManager.Stop(ctx, stack.RedisService); err != nil {
		return err
	}
	return repo.ServiceManager.Start(ctx, stack.RedisService)
}
