package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// applyRetention removes the sets beyond Keep, oldest first, and the WAL that no
// other set needs. The newest verified set stays, however old it is: the later ones
// may not be restorable.
func (repo *Repository) applyRetention() error {
	sets, damaged := repo.Sets()
	if len(damaged) > 0 {
		return fmt.Errorf("no backup is removed while one can't be read: %w", errors.Join(damaged...))
	}
	keep := max(repo.Keep, 1)
	verified := -1
	for i, s := range sets {
		if s.VerifyResult != nil {
			verified = i
		}
	}
	var kept []*Set
	for i, s := range sets {
		if i >= len(sets)-keep || i == verified {
			kept = append(kept, s)
			continue
		}
		// Renamed first, so that an interrupted removal leaves no incomplete set.
		partial := filepath.Join(filepath.Dir(s.Dir), partialPrefix+s.Name)
		if err := os.Rename(s.Dir, partial); err != nil {
			return fmt.Errorf("remove the backup %s: %w", s.Name, err)
		}
		if err := os.RemoveAll(partial); err != nil {
			return fmt.Errorf("remove the backup %s: %w", s.Name, err)
		}
		repo.Logger.Info("old backup removed", "name", s.Name)
	}
	return repo.trimArchive(kept)
}

// trimArchive removes the segments before the start of the oldest kept set. The
// history files stay: they are small, and later recoveries need them.
func (repo *Repository) trimArchive(kept []*Set) error {
	if len(kept) == 0 {
		return nil
	}
	first := kept[0]
	for _, s := range kept {
		if s.StartLSN < first.StartLSN {
			first = s
		}
	}
	a, err := readArchive(filepath.Join(repo.Dir, walFolder), first.SegmentBytes)
	if err != nil {
		return err
	}
	oldest := segmentOf(first.StartLSN, first.SegmentBytes)
	removed := 0
	for s, name := range a.files {
		if s.number >= oldest {
			continue
		}
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
			return fmt.Errorf("trim the WAL archive: %w", err)
		}
		removed++
	}
	if removed > 0 {
		repo.Logger.Info("WAL archive trimmed", "segments", removed, "first", segment{first.Timeline, oldest}.name(first.SegmentBytes))
	}
	return nil
}

// A Status describes the repository for list, check and the metrics.
type Status struct {
	Sets []*Set
	// Damaged has an error for each folder of sets/ that is not a whole set.
	Damaged []error
	// Segments is the number of segments in the archive, WALSize the size of all its
	// files in bytes, and NewestWAL the time at which the newest segment arrived.
	Segments  int
	WALSize   int64
	NewestWAL time.Time
}

// LastVerified returns the newest result of a verify and its set, or nil.
func (s *Status) LastVerified() (set *Set, result *VerifyResult) {
	for _, one := range s.Sets {
		if one.VerifyResult != nil && (result == nil || one.VerifyResult.Verified.After(result.Verified)) {
			set, result = one, one.VerifyResult
		}
	}
	return set, result
}

// Newest returns the newest set, or nil.
func (s *Status) Newest() *Set {
	if len(s.Sets) == 0 {
		return nil
	}
	return s.Sets[len(s.Sets)-1]
}

// Status reads the folder. It runs no program.
func (repo *Repository) Status() (*Status, error) {
	if _, err := os.Stat(repo.Dir); err != nil {
		return nil, fmt.Errorf("BACKUP_DIR: %w", err)
	}
	s := new(Status)
	s.Sets, s.Damaged = repo.Sets()
	const anySize = 16 << 20 // PostgreSQL's default, if no set names the size
	size := int64(anySize)
	if n := s.Newest(); n != nil {
		size = n.SegmentBytes
	}
	a, err := readArchive(filepath.Join(repo.Dir, walFolder), size)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.Segments, s.WALSize, s.NewestWAL = len(a.files), a.size, a.newest
	return s, nil
}

// WriteMetrics writes the Status as metrics for node_exporter's textfile collector:
// it replaces metrics/switchyard_backup.prom atomically.
func (repo *Repository) WriteMetrics() error { return repo.writeMetrics() }

func (repo *Repository) writeMetrics() error {
	s, err := repo.Status()
	if err != nil {
		return err
	}
	dir := filepath.Join(repo.Dir, metricsFolder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the metrics: %w", err)
	}
	return stack.WriteFile(filepath.Join(dir, "switchyard_backup.prom"), []byte(s.metrics()), 0o644)
}

// metrics formats the status for Prometheus.
func (s *Status) metrics() string {
	var success, verified, size, setBytes float64
	if n := s.Newest(); n != nil {
		success, setBytes = unixSeconds(n.Finished), float64(n.Size())
	}
	if _, p := s.LastVerified(); p != nil {
		verified = unixSeconds(p.Verified)
	}
	for _, one := range s.Sets {
		size += float64(one.Size())
	}
	rows := []struct {
		name, help string
		value      float64
	}{
		{"last_success_timestamp_seconds", "When the newest backup was finished; 0 without any.", success},
		{"last_verified_timestamp_seconds", "When a backup was last restored into a scratch server and found good; 0 when never.", verified},
		{"last_size_bytes", "Size of the newest backup.", setBytes},
		{"size_bytes", "Size of all backups, without the WAL archive.", size},
		{"sets", "Backups that are kept.", float64(len(s.Sets))},
		{"damaged_sets", "Folders of backups that can't be read.", float64(len(s.Damaged))},
		{"wal_segments", "Segments in the WAL archive.", float64(s.Segments)},
		{"wal_size_bytes", "Size of the WAL archive.", float64(s.WALSize)},
		{"wal_newest_timestamp_seconds", "When the newest segment came into the WAL archive; 0 without any.", unixSeconds(s.NewestWAL)},
	}
	var b strings.Builder
	for _, r := range rows {
		name := "switchyard_backup_" + r.name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n%s %.3f\n", name, r.help, name, name, r.value)
	}
	return b.String()
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// sortedKeys returns the keys of a map, sorted.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
