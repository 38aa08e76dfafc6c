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
)

// readConfiguration reads the packed configuration to its end, and shows each
// entry to visit, if there is one.
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

// readRestorable reads the configuration as readConfiguration does, without what
// lies in the folder state: who is the primary and which color is live are not
// what they were when the backup was made.
func (s *Set) readRestorable(state string, visit func(*tar.Header, []byte) error) error {
	_, err := readConfiguration(s.path(configFile), func(h *tar.Header, b []byte) error {
		if path := hostPath(h); state != "" && (path == state || strings.HasPrefix(path, state+"/")) {
			return nil
		}
		return visit(h, b)
	})
	return err
}

// restoreConfiguration writes the files that differ from those of the set. What
// they replace is packed first.
func (v *Repository) restoreConfiguration(s *Set, out *RestoreResult) error {
	state := v.Runner.StateDir()
	changed, err := s.changedPaths(state)
	if err != nil || len(changed) == 0 {
		return err
	}
	out.ReplacedArchive = filepath.Join(v.Dir, "configuration-before-"+time.Now().UTC().Format(stampLayout)+".tar.gz")
	var old bytes.Buffer
	pack := gzip.NewWriter(&old)
	t := tar.NewWriter(pack)
	for _, path := range changed {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().IsRegular() {
			err = addFile(t, path, "", info)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep %s: %w", path, err)
		}
	}
	if err := errors.Join(t.Close(), pack.Close()); err != nil {
		return err
	}
	if err := writeFileAtomic(out.ReplacedArchive, old.Bytes(), 0o600); err != nil {
		return err
	}
	err = s.readRestorable(state, func(h *tar.Header, b []byte) error {
		if err := restoreEntry(h, b); err != nil {
			return fmt.Errorf("restore %s (what it was is in %s): %w", h.Name, out.ReplacedArchive, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	left, err := s.changedPaths(state)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s is not what was backed up, after the restore", left[0])
	}
	out.Configuration = changed
	return err
}

// changedPaths returns the files of the configuration that are not there, or
// have another content than when they were backed up.
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

func hostPath(h *tar.Header) string { return filepath.Clean("/" + h.Name) }

// restoreEntry writes what is missing or differs. A file is replaced by rename,
// so that who watches its folder sees it whole.
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
		if err := writeFileAtomic(path, b, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Chown(path, h.Uid, h.Gid)
	}
	return nil
}

// restoreCertificates gives Traefik back what Let's Encrypt gave it.
func (v *Repository) restoreCertificates(ctx context.Context, s *Set) error {
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
	if err := v.Runner.Run(ctx, TraefikService, Program{Args: []string{"tar", "-xf", "-", "-C", acmeFolder}, Stdin: f}); err != nil {
		return fmt.Errorf("restore the certificates: %w", err)
	}
	// It reads them when it starts.
	if err := v.ServiceManager.Stop(ctx, TraefikService); err != nil {
		return err
	}
	return v.ServiceManager.Start(ctx, TraefikService)
}

// restoreRedisScript takes the snapshot from standard input. Where an append-only file
// is kept, Redis reads that and no snapshot; a snapshot in the place of the old
// single append-only file it takes over, and goes on from there.
const restoreRedisScript = `set -e
cd "$0"
cat > .restore.rdb
rm -rf appendonlydir dump.rdb appendonly.aof
if [ "$1" = aof ]; then mv .restore.rdb appendonly.aof; else mv .restore.rdb dump.rdb; fi
sync`

// restoreRedis gives Redis the snapshot's data in place of its own.
func (v *Repository) restoreRedis(ctx context.Context, s *Set, replace bool) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	if _, has := s.file(redisFile); !has {
		return fmt.Errorf("backup %s has no snapshot of Redis", s.Name)
	}
	if !replace {
		return fmt.Errorf("%s: sessions that are there would be lost: restore --redis needs --replace", RedisService)
	}
	run := runOn(v.Runner, RedisService)
	answer, err := output(ctx, run, "redis-cli", "CONFIG", "GET", "appendonly")
	if err != nil {
		return fmt.Errorf("redis must run, so that its settings can be asked for: %w", err)
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
	// Redis must not write its own data over the restored ones when it ends.
	if _, err := output(ctx, run, "redis-cli", "CONFIG", "SET", "save", ""); err != nil {
		return err
	}
	err = run(ctx, Program{Args: []string{"sh", "-c", restoreRedisScript, folder, mode}, Stdin: f})
	if err != nil {
		return err
	}
	// A shutdown in order would flush the append-only file anew.
	if err := v.ServiceManager.Stop(ctx, RedisService); err != nil {
		return err
	}
	return v.ServiceManager.Start(ctx, RedisService)
}
