package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNoService is what Site.Run returns for a service that the stack does not
// have.
var ErrNoService = errors.New("the stack has no such service")

// redisSnapshot takes a snapshot as a replica would get it: nothing is written where
// Redis runs.
func (m *builder) redisSnapshot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	err := m.writeFile(redisFile, func(w io.Writer) error {
		u := &eofMarkStripper{to: w}
		return errors.Join(m.repository.Runner.Run(ctx, RedisService, Program{Args: []string{"redis-cli", "--rdb", "-"}, Stdout: u}), u.flush())
	})
	path := filepath.Join(m.dir, redisFile)
	if errors.Is(err, ErrNoService) {
		m.repository.Logger.Warn("the stack has no Redis: no snapshot of it")
		return os.Remove(path)
	}
	if err != nil {
		return err
	}
	return checkRDB(path)
}

// An eofMarkStripper leaves out the mark of 40 hex digits that ends a snapshot sent
// without its length, and that redis-cli can't take back from a pipe.
type eofMarkStripper struct {
	to      io.Writer
	pending []byte // the newest bytes, at most eofMarkSize
}

const eofMarkSize = 40

func (u *eofMarkStripper) Write(b []byte) (int, error) {
	u.pending = append(u.pending, b...)
	if n := len(u.pending) - eofMarkSize; n > 0 {
		if _, err := u.to.Write(u.pending[:n]); err != nil {
			return 0, err
		}
		u.pending = append(u.pending[:0], u.pending[n:]...)
	}
	return len(b), nil
}

// flush writes what is held, unless it is a mark. A snapshot's own last bytes
// can't be one: the ninth from behind is 255.
func (u *eofMarkStripper) flush() error {
	if len(u.pending) == eofMarkSize && len(bytes.Trim(u.pending, "0123456789abcdef")) == 0 {
		return nil
	}
	_, err := u.to.Write(u.pending)
	return err
}

// Redis sums a snapshot by CRC-64 with Jones' polynomial, reflected, without
// the inversions that the standard library makes.
var jonesTable = crc64.MakeTable(0x95ac9329ac4bc9b5)

// checkRDB holds a snapshot of Redis against the sum at its end.
func checkRDB(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the snapshot of Redis: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read the snapshot of Redis: %w", err)
	}
	const foot = 8
	if info.Size() < 9+1+foot {
		return &DamageError{path, fmt.Sprintf("is cut short: %d bytes are no snapshot of Redis", info.Size())}
	}
	r := bufio.NewReaderSize(f, 1<<17)
	if magic, err := r.Peek(5); err != nil || string(magic) != "REDIS" {
		return &DamageError{path, "is no snapshot of Redis"}
	}
	var sum uint64
	for range info.Size() - foot {
		b, err := r.ReadByte()
		if err != nil {
			return fmt.Errorf("read the snapshot of Redis: %w", err)
		}
		sum = jonesTable[byte(sum)^b] ^ sum>>8
	}
	var want uint64
	for shift := 0; shift < 64; shift += 8 {
		b, err := r.ReadByte()
		if err != nil {
			return fmt.Errorf("read the snapshot of Redis: %w", err)
		}
		want |= uint64(b) << shift
	}
	if want != 0 && want != sum { // 0: rdbchecksum no
		return &DamageError{path, "is corrupt: its sum does not match"}
	}
	return nil
}

// certificates packs what Let's Encrypt gave to Traefik. It can be asked for
// again: a Traefik that is away does not keep a backup from being made.
func (m *builder) certificates(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	err := m.writeFile(acmeFile, func(w io.Writer) error {
		return m.repository.Runner.Run(ctx, TraefikService, Program{Args: []string{"tar", "-cf", "-", "-C", acmeFolder, "."}, Stdout: w})
	})
	if err == nil || ctx.Err() != nil || isDiskError(err) {
		return err
	}
	m.repository.Logger.Warn("the certificates of Let's Encrypt are not in this backup", "error", err)
	return os.Remove(filepath.Join(m.dir, acmeFile))
}

// isDiskError says whether an error is one of this host's disk.
func isDiskError(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path)
}

// checkTar reads a tar file to its end.
func checkTar(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return &DamageError{path, "is missing"}
	}
	defer func() { _ = f.Close() }()
	for t := tar.NewReader(bufio.NewReader(f)); ; {
		if _, err := t.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return &DamageError{path, fmt.Sprintf("is corrupt: %v", err)}
		}
	}
}

// configuration packs the files that the site names, under their full paths.
func (m *builder) configuration(ctx context.Context) error {
	paths, err := m.repository.Runner.ConfigPaths(ctx)
	if err != nil {
		return err
	}
	return m.writeFile(configFile, func(w io.Writer) error {
		pack := gzip.NewWriter(w)
		t := tar.NewWriter(pack)
		for _, path := range paths {
			if err := addTree(t, path, m.repository.Dir); err != nil {
				return err
			}
		}
		return errors.Join(t.Close(), pack.Close())
	})
}

// addTree packs a file, or a folder with all below it but the backups
// themselves. What is no file, folder or link has no content to keep.
func addTree(t *tar.Writer, root, except string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // such as a temporary file, renamed meanwhile
		}
		if err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		if path == except {
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		var target string
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if target, err = os.Readlink(path); err != nil {
				return fmt.Errorf("read the configuration: %w", err)
			}
		case !info.Mode().IsRegular() && !info.IsDir():
			return nil
		}
		return addFile(t, path, target, info)
	})
}

func addFile(t *tar.Writer, path, target string, info fs.FileInfo) error {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	h.Name = strings.TrimPrefix(path, "/")
	if !info.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f) // small; its size may have changed since
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	h.Size = int64(len(b))
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	_, err = t.Write(b)
	return err
}

const sqlLogStats = `SELECT (SELECT epoch FROM meta), (SELECT count(*) FROM rooms), (SELECT count(*) FROM messages),
 (SELECT count(*) FROM message_ids), (SELECT to_char(max(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM messages)`

// readLogStats counts what the log holds.
func readLogStats(ctx context.Context, run func(context.Context, Program) error) (l LogStats, err error) {
	answer, err := output(ctx, run, "psql", "-XAt", "-F", "\x1f", "-c", sqlLogStats)
	if err != nil {
		return l, err
	}
	f := strings.Split(answer, "\x1f")
	if len(f) != 5 {
		return l, fmt.Errorf("psql answered %q", answer)
	}
	l.Epoch = f[0]
	for i, to := range []*int64{&l.Rooms, &l.Messages, &l.IDs} {
		if *to, err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
			return l, fmt.Errorf("psql answered %q", answer)
		}
	}
	if f[4] != "" {
		l.Newest, err = time.Parse(time.RFC3339Nano, f[4])
	}
	return l, err
}
