package backup

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"switchyard/internal/stack"
)

// Verify restores a set into a scratch server, replays the whole archive and checks
// each room. An empty name means the newest set. A result that passes is written
// into the set; the stack itself is not touched.
func (repo *Repository) Verify(ctx context.Context, name string) (*VerifyResult, error) {
	release, err := repo.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	s, err := repo.FindSet(name)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	result, err := repo.verifySet(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", s.Name, err)
	}
	result.Verified, result.Took = time.Now().UTC(), time.Since(began).Round(time.Millisecond).String()
	if err := writeJSON(filepath.Join(s.Dir, verifyResultFile), result); err != nil {
		return nil, err
	}
	repo.Logger.Info("backup verified", "name", s.Name, "messages", result.Log.Messages, "rooms", result.Log.Rooms, "took", result.Took)
	return result, repo.writeMetrics()
}

// verifySet checks the set's files, and verifies it on a scratch server.
func (repo *Repository) verifySet(ctx context.Context, s *Set) (*VerifyResult, error) {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	if err := s.checkFiles(ctx); err != nil {
		return nil, err
	}
	r, err := repo.newRestoredServer(ctx, s, true)
	if err != nil {
		return nil, err
	}
	result, err := r.verify(ctx)
	return result, errors.Join(err, r.close())
}

// newRestoredServer starts a scratch server for a set. The caller closes it.
func (repo *Repository) newRestoredServer(ctx context.Context, s *Set, disposable bool) (*restoredServer, error) {
	a, err := readArchive(filepath.Join(repo.Dir, walFolder), s.SegmentBytes)
	if err != nil {
		return nil, err
	}
	server, err := repo.Runner.ScratchServer(ctx, disposable)
	if err != nil {
		return nil, fmt.Errorf("the scratch server can't start: %w", err)
	}
	return &restoredServer{repository: repo, set: s, archive: a, scratch: server, paths: server.Paths(), replacesLive: !disposable}, nil
}

// close removes the scratch server, even if the command was interrupted.
func (r *restoredServer) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), shortLimit)
	defer cancel()
	return r.scratch.Close(ctx)
}

// verify checks the archive, restores the set with the whole archive, and checks the
// log and the dump.
func (r *restoredServer) verify(ctx context.Context) (*VerifyResult, error) {
	// Find a damaged file before the long work.
	c, err := r.chain(target{})
	if err != nil {
		return nil, err
	}
	if c.missing != "" {
		return nil, r.archive.corrupt(c.missing, fmt.Sprintf("is missing, but %d later segments exist", c.laterSegments))
	}
	// The base has its own WAL and would start without any archive.
	if stop := r.set.stopSegment(); len(c.segments) == 0 || c.segments[len(c.segments)-1].number < stop.number {
		return nil, r.archive.corrupt(stop.name(r.set.SegmentBytes), "is missing, and so are all later segments: the archive does not reach the end of the base backup; check archive_command")
	}
	for _, s := range c.segments {
		if err := r.archive.checkSegment(s, r.set.SystemID); err != nil {
			return nil, err
		}
	}
	if err := r.unpackBase(ctx); err != nil {
		return nil, err
	}
	if err := r.startRecovery(ctx, target{}); err != nil {
		return nil, err
	}
	p, err := r.checkReplay(ctx, target{})
	if err != nil {
		return nil, err
	}
	l, err := r.checkLog(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.checkDump(ctx); err != nil {
		return nil, err
	}
	return &VerifyResult{Log: l, ReplayedTo: p.endLSN, LastCommit: p.lastCommit, Segments: p.segments}, r.stop(ctx)
}

// checkDump lets pg_restore read the logical dump to its end, without writing it.
func (r *restoredServer) checkDump(ctx context.Context) error {
	if _, has := r.set.file(dumpFile); !has {
		return nil
	}
	path := filepath.Join(r.set.Dir, dumpFile)
	f, err := os.Open(path)
	if err != nil {
		return &DamageError{path, "is missing"}
	}
	defer func() { _ = f.Close() }()
	if err := r.scratch.Run(ctx, stack.Program{Args: []string{"pg_restore", "--file=/dev/null"}, Stdin: f}); err != nil {
		return &DamageError{path, fmt.Sprintf("is corrupt: %v", err)}
	}
	return nil
}

// checkFiles compares each file of the set with its size and checksum in the
// manifest, and checks the formats that have a checksum of their own.
func (s *Set) checkFiles(ctx context.Context) error {
	for _, f := range s.Files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		path := filepath.Join(s.Dir, f.Name)
		if err := checkFile(path, f); err != nil {
			return err
		}
		switch f.Name {
		case redisFile:
			if err := checkRDB(path); err != nil {
				return err
			}
		case acmeFile:
			if err := checkTar(path); err != nil {
				return err
			}
		case configFile:
			if _, err := readConfiguration(path, nil); err != nil {
				return err
			}
		}
	}
	for _, needed := range []string{baseFile, headsFile, configFile} {
		if _, has := s.file(needed); !has {
			return &DamageError{filepath.Join(s.Dir, manifestFile), "names no " + needed}
		}
	}
	return nil
}

// checkFile compares a file with its size and checksum.
func checkFile(path string, want File) error {
	f, err := os.Open(path)
	if err != nil {
		return &DamageError{path, "is missing"}
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	switch {
	case err != nil:
		return fmt.Errorf("read %s: %w", path, err)
	case n < want.Size:
		return &DamageError{path, fmt.Sprintf("is truncated: it has %d of %d bytes", n, want.Size)}
	case n > want.Size || hex.EncodeToString(sum.Sum(nil)) != want.SHA256:
		return &DamageError{path, "is corrupt: its SHA-256 is not that of the manifest"}
	}
	return nil
}

// openGzip opens a gzip file.
func openGzip(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &DamageError{path, "is missing"}
	}
	r, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, errors.Join(&DamageError{path, "is corrupt: it is not a gzip file"}, f.Close())
	}
	return &gzipFile{Reader: r, file: f}, nil
}
