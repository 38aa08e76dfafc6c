package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// applyRetention removes sets beyond Keep, oldest first, and the WAL that none of the
// others needs. The newest set that was verified stays, however old: what comes
// after it has proved nothing yet.
func (v *Repository) applyRetention() error {
	sets, damaged := v.Sets()
	if len(damaged) > 0 {
		return fmt.Errorf("nothing is removed while a backup can't be read: %w", errors.Join(damaged...))
	}
	keep := max(v.Keep, 1)
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
		// The name goes first, so that a removal cut short leaves no half set.
		partial := filepath.Join(filepath.Dir(s.Dir), partialPrefix+s.Name)
		if err := os.Rename(s.Dir, partial); err != nil {
			return fmt.Errorf("remove the backup %s: %w", s.Name, err)
		}
		if err := os.RemoveAll(partial); err != nil {
			return fmt.Errorf("remove the backup %s: %w", s.Name, err)
		}
		v.Logger.Info("old backup removed", "name", s.Name)
	}
	return v.trimArchive(kept)
}

// trimArchive removes the segments before the oldest start. Histories stay:
// they are small, and say how timelines hang together.
func (v *Repository) trimArchive(kept []*Set) error {
	if len(kept) == 0 {
		return nil
	}
	first := kept[0]
	for _, s := range kept {
		if s.StartLSN < first.StartLSN {
			first = s
		}
	}
	a, err := readArchive(filepath.Join(v.Dir, walFolder), first.SegmentBytes)
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
		v.Logger.Info("WAL archive trimmed", "segments", removed, "first", segment{first.Timeline, oldest}.name(first.SegmentBytes))
	}
	return nil
}

// A Status is what list, check and the metrics tell.
type Status struct {
	Sets    []*Set
	Damaged []error
	// Segments, WALSize and NewestWAL are those of the archive.
	Segments  int
	WALSize   int64
	NewestWAL time.Time
}

// LastVerified returns the newest proof and the set that it speaks of.
func (s *Status) LastVerified() (set *Set, result *VerifyResult) {
	for _, one := range s.Sets {
		if one.VerifyResult != nil && (result == nil || one.VerifyResult.Verified.After(result.Verified)) {
			set, result = one, one.VerifyResult
		}
	}
	return set, result
}

// Newest returns the newest set; nil without any.
func (s *Status) Newest() *Set {
	if len(s.Sets) == 0 {
		return nil
	}
	return s.Sets[len(s.Sets)-1]
}

// Status looks at the folder; no program is run.
func (v *Repository) Status() (*Status, error) {
	if _, err := os.Stat(v.Dir); err != nil {
		return nil, fmt.Errorf("BACKUP_DIR: %w", err)
	}
	s := new(Status)
	s.Sets, s.Damaged = v.Sets()
	const anySize = 16 << 20 // PostgreSQL's default, until a set tells
	size := int64(anySize)
	if n := s.Newest(); n != nil {
		size = n.SegmentBytes
	}
	a, err := readArchive(filepath.Join(v.Dir, walFolder), size)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.Segments, s.WALSize, s.NewestWAL = len(a.files), a.size, a.newest
	return s, nil
}

// WriteMetrics writes what a State tells for node_exporter's textfile
// collector: metrics/switchyard_backup.prom, whole or not at all.
func (v *Repository) WriteMetrics() error { return v.writeMetrics() }

func (v *Repository) writeMetrics() error {
	s, err := v.Status()
	if err != nil {
		return err
	}
	dir := filepath.Join(v.Dir, metricsFolder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the metrics: %w", err)
	}
	return writeFileAtomic(filepath.Join(dir, "switchyard_backup.prom"), []byte(s.metrics()), 0o644)
}

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

// sortedKeys returns a map's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
