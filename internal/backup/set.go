package backup

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The files of a set. A set is whole once manifest.json is there; it is written
// last, and the folder gets its name only then.
const (
	baseFile         = "base.tar.gz"
	dumpFile         = "dump.pgc"
	redisFile        = "redis.rdb"
	configFile       = "configuration.tar.gz"
	acmeFile         = "certificates.tar"
	headsFile        = "rooms.tsv.gz"
	manifestFile     = "manifest.json"
	verifyResultFile = "proof.json"

	setsFolder    = "sets"
	walFolder     = "wal"
	metricsFolder = "metrics"
	partialPrefix = ".partial-"
	stampLayout   = "20060102T150405Z"
	formatVersion = 1
)

// A File is one file of a set.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// A Manifest says what a set holds, and from where in the life of the database.
type Manifest struct {
	Format   int       `json:"format"`
	Name     string    `json:"name"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Version  string    `json:"version"`

	PostgreSQL   string `json:"postgresql"`
	SystemID     string `json:"system_id"`
	Database     string `json:"database"`
	SegmentBytes int64  `json:"wal_segment_bytes"`
	Timeline     uint32 `json:"timeline"`
	StartLSN     LSN    `json:"start_lsn"`
	StopLSN      LSN    `json:"stop_lsn"`
	// Consistent is the database's clock after the base backup had ended: the
	// set serves for this time and all later ones.
	Consistent time.Time `json:"consistent"`

	// At the start of the backup.
	Log   LogStats `json:"log"`
	Files []File   `json:"files"`
}

// A LogStats is what the tables of the log hold.
type LogStats struct {
	Epoch    string `json:"epoch"`
	Rooms    int64  `json:"rooms"`
	Messages int64  `json:"messages"`
	IDs      int64  `json:"ids"`
	// Newest is when the newest message was stored; zero without any.
	Newest time.Time `json:"newest"`
}

// A VerifyResult is what verify found out about a set.
type VerifyResult struct {
	Verified time.Time `json:"verified"`
	Took     string    `json:"took"`
	// Log is what the scratch server held after the whole archive was replayed.
	Log LogStats `json:"log"`
	// ReplayedTo is where the archive ended, and LastCommit when its last
	// transaction was committed.
	ReplayedTo LSN    `json:"replayed_to"`
	LastCommit string `json:"last_commit"`
	Segments   int    `json:"segments"`
}

// A Set is a backup on disk.
type Set struct {
	Manifest
	// Dir is the folder of the set.
	Dir string `json:"Dir"`
	// VerifyResult is that of the last verify that passed; nil without any.
	VerifyResult *VerifyResult `json:"Proof"`
}

// Size returns the bytes of all files.
func (s *Set) Size() (n int64) {
	for _, f := range s.Files {
		n += f.Size
	}
	return n
}

// file returns what the manifest says of a file; ok is false when the set has
// none of this name.
func (s *Set) file(name string) (f File, ok bool) {
	i := slices.IndexFunc(s.Files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return File{}, false
	}
	return s.Files[i], true
}

// readSet reads a set's manifest and proof.
func readSet(dir string) (*Set, error) {
	s := &Set{Dir: dir}
	if err := readJSON(filepath.Join(dir, manifestFile), &s.Manifest); err != nil {
		return nil, err
	}
	if s.Format != formatVersion {
		return nil, fmt.Errorf("%s has format %d; this version reads %d", filepath.Join(dir, manifestFile), s.Format, formatVersion)
	}
	if s.Name != filepath.Base(dir) || s.SegmentBytes < 1<<20 || s.Consistent.IsZero() {
		return nil, fmt.Errorf("%s is not the manifest of this backup", filepath.Join(dir, manifestFile))
	}
	result := new(VerifyResult)
	switch err := readJSON(filepath.Join(dir, verifyResultFile), result); {
	case err == nil:
		s.VerifyResult = result
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return s, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

// writeJSON writes a file that is there whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFileAtomic(path, append(b, '\n'), 0o600)
}

// writeFileAtomic replaces a file by way of another one beside it, flushed first.
func writeFileAtomic(path string, b []byte, mode fs.FileMode) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes renames in a folder last.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush %s: %w", dir, err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sets returns the whole sets, oldest first, and an error for each folder that
// is none.
func (v *Repository) Sets() (sets []*Set, damaged []error) {
	entries, err := os.ReadDir(filepath.Join(v.Dir, setsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("read the backups: %w", err)}
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		s, err := readSet(filepath.Join(v.Dir, setsFolder, e.Name()))
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		sets = append(sets, s)
	}
	slices.SortFunc(sets, func(a, b *Set) int { return cmp.Compare(a.Name, b.Name) })
	return sets, damaged
}

// FindSet returns the set of this name; an empty name means the newest.
func (v *Repository) FindSet(name string) (*Set, error) {
	sets, damaged := v.Sets()
	if name == "" && len(sets) > 0 {
		return sets[len(sets)-1], nil
	}
	for _, s := range sets {
		if s.Name == name {
			return s, nil
		}
	}
	if len(damaged) > 0 {
		return nil, errors.Join(damaged...)
	}
	if name == "" {
		return nil, fmt.Errorf("there is no backup in %s: make one with switchyard backup", v.Dir)
	}
	return nil, fmt.Errorf("there is no backup %q in %s: switchyard backup list names them", name, v.Dir)
}
