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

	"switchyard/internal/stack"
)

// The files of a set. manifest.json is written last, and the folder gets its final
// name after that: a set with a manifest is complete.
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

// A Manifest describes the contents of a set, and the position of its base backup
// in the WAL.
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
	// Consistent is the time of the database's clock after the base backup ended: a
	// restore from this set can reach this time and all later ones.
	Consistent time.Time `json:"consistent"`

	// Log has the counts at the beginning of the backup.
	Log   LogStats `json:"log"`
	Files []File   `json:"files"`
}

// LogStats are counts of the tables of the log.
type LogStats struct {
	Epoch    string `json:"epoch"`
	Rooms    int64  `json:"rooms"`
	Messages int64  `json:"messages"`
	IDs      int64  `json:"ids"`
	// Newest is when the newest message was stored; zero means that there is none.
	Newest time.Time `json:"newest"`
}

// A VerifyResult is the result of a verify that passed.
type VerifyResult struct {
	Verified time.Time `json:"verified"`
	Took     string    `json:"took"`
	// Log has the counts after the replay of the whole archive.
	Log LogStats `json:"log"`
	// ReplayedTo is the end of the archive, and LastCommit the time of its last
	// transaction.
	ReplayedTo LSN    `json:"replayed_to"`
	LastCommit string `json:"last_commit"`
	Segments   int    `json:"segments"`
}

// A Set is a backup on disk.
type Set struct {
	Manifest
	// Dir is the folder of the set.
	Dir string `json:"Dir"`
	// VerifyResult is the result of the last verify that passed, or nil.
	VerifyResult *VerifyResult `json:"Proof"`
}

// Size returns the size of all files in bytes.
func (s *Set) Size() (n int64) {
	for _, f := range s.Files {
		n += f.Size
	}
	return n
}

// file returns the manifest's entry of a file. ok is false if there is none.
func (s *Set) file(name string) (f File, ok bool) {
	i := slices.IndexFunc(s.Files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return File{}, false
	}
	return s.Files[i], true
}

// readSet reads a set's manifest and the result of its last verify.
func readSet(dir string) (*Set, error) {
	s := &Set{Dir: dir}
	if err := readJSON(filepath.Join(dir, manifestFile), &s.Manifest); err != nil {
		return nil, err
	}
	if s.Format != formatVersion {
		return nil, fmt.Errorf("%s has format %d; this version only reads format %d", filepath.Join(dir, manifestFile), s.Format, formatVersion)
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

// writeJSON writes v as a JSON file, atomically.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return stack.WriteFile(path, append(b, '\n'), 0o600)
}

// Sets returns the complete sets, oldest first, and an error for each folder that is
// not one.
func (repo *Repository) Sets() (sets []*Set, damaged []error) {
	entries, err := os.ReadDir(filepath.Join(repo.Dir, setsFolder))
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
		s, err := readSet(filepath.Join(repo.Dir, setsFolder, e.Name()))
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		sets = append(sets, s)
	}
	slices.SortFunc(sets, func(a, b *Set) int { return cmp.Compare(a.Name, b.Name) })
	return sets, damaged
}

// FindSet returns the set with a name, or the newest one if the name is empty.
func (repo *Repository) FindSet(name string) (*Set, error) {
	sets, damaged := repo.Sets()
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
		return nil, fmt.Errorf("there is no backup in %s: make one with switchyard backup", repo.Dir)
	}
	return nil, fmt.Errorf("there is no backup %q in %s: switchyard backup list names them", name, repo.Dir)
}
