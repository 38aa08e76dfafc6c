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

	"switchyard/internal/stack"
)

// redisSnapshot streams a snapshot from Redis as a replica does, so that nothing is
// written on Redis' disk.
func (b *builder) redisSnapshot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	err := b.writeFile(redisFile, func(w io.Writer) error {
		s := &eofMarkStripper{to: w}
		return errors.Join(b.repository.Runner.Run(ctx, stack.RedisService, stack.Program{Args: []string{"redis-cli", "--rdb", "-"}, Stdout: s}), s.flush())
	})
	path := filepath.Join(b.dir, redisFile)
	if errors.Is(err, stack.ErrNoService) {
		b.repository.Logger.Warn("the stack has no Redis: the backup has no snapshot of it")
		return os.Remove(path)
	}
	if err != nil {
		return err
	}
	return checkRDB(path)
}

// An eofMarkStripper removes the mark of 40 hex digits at the end of a snapshot that
// Redis sends without its length. redis-cli can't remove it from a pipe.
type eofMarkStripper struct {
	to      io.Writer
	pending []byte // the newest bytes, at most eofMarkSize
}

const eofMarkSize = 40

func (e *eofMarkStripper) Write(b []byte) (int, error) {
	e.pending = append(e.pending, b...)
	if n := len(e.pending) - eofMarkSize; n > 0 {
		if _, err := e.to.Write(e.pending[:n]); err != nil {
			return 0, err
		}
		e.pending = append(e.pending[:0], e.pending[n:]...)
	}
	return len(b), nil
}

// flush writes the pending bytes, unless they are a mark. They can't be the
// snapshot's own, in which the ninth byte from the end is 255.
func (e *eofMarkStripper) flush() error {
	if len(e.pending) == eofMarkSize && len(bytes.Trim(e.pending, "0123456789abcdef")) == 0 {
		return nil
	}
	_, err := e.to.Write(e.pending)
	return err
}

// jonesTable is for Redis' checksum: CRC-64 with Jones' polynomial, reflected,
// without the inversions of the standard library.
var jonesTable = crc64.MakeTable(0x95ac9329ac4bc9b5)

// checkRDB compares a snapshot of Redis with the checksum at its end.
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
		return &DamageError{path, fmt.Sprintf("is truncated: %d bytes are too few for a snapshot of Redis", info.Size())}
	}
	r := bufio.NewReaderSize(f, 1<<17)
	if magic, err := r.Peek(5); err != nil || string(magic) != "REDIS" {
		return &DamageError{path, "is not a snapshot of Redis"}
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
	if want != 0 && want != sum { // 0 stands for `rdbchecksum no`
		return &DamageError{path, "is corrupt: its checksum does not match"}
	}
	return nil
}

// certificates packs the certificates of Let's Encrypt. They can be issued again, so
// a Traefik that does not run only leaves them out of the backup.
func (b *builder) certificates(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	err := b.writeFile(acmeFile, func(w io.Writer) error {
		return b.repository.Runner.Run(ctx, stack.TraefikService, stack.Program{Args: []string{"tar", "-cf", "-", "-C", acmeFolder, "."}, Stdout: w})
	})
	if err == nil || ctx.Err() != nil || isDiskError(err) {
		return err
	}
	b.repository.Logger.Warn("the certificates of Let's Encrypt are not in this backup", "error", err)
	return os.Remove(filepath.Join(b.dir, acmeFile))
}

// isDiskError reports whether an error comes from this host's disk.
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

// configuration packs the files of ConfigPaths under their full paths.
func (b *builder) configuration(ctx context.Context) error {
	paths, err := b.repository.Runner.ConfigPaths(ctx)
	if err != nil {
		return err
	}
	return b.writeFile(configFile, func(w io.Writer) error {
		pack := gzip.NewWriter(w)
		t := tar.NewWriter(pack)
		for _, path := range paths {
			if err := addTree(t, path, b.repository.Dir); err != nil {
				return err
			}
		}
		return errors.Join(t.Close(), pack.Close())
	})
}

// addTree packs a file, or a folder with all below it, except for the path except.
// It skips what is neither a file nor a folder nor a link.
func addTree(t *tar.Writer, root, except string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // such as a temporary file that was renamed since
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

// addFile packs one entry. target is where a link leads.
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
	b, err := io.ReadAll(f) // small files; the size may differ from info's
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

// readLogStats counts the rows of the log's tables.
func readLogStats(ctx context.Context, run func(context.Context, stack.Program) error) (l LogStats, err error) {
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
