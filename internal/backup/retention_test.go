package backup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const testSegmentBytes = 1 << 20

// newTestRepository returns a repository with an empty archive and no stack.
func newTestRepository(t *testing.T) *Repository {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{setsFolder, walFolder} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &Repository{Dir: dir, Keep: 2, Logger: slog.New(slog.DiscardHandler)}
}

// testHour returns the start of an hour of a day.
func testHour(hour int) time.Time { return time.Date(2026, 11, 26, hour, 0, 0, 0, time.UTC) }

// addSet adds a set without files. It was made at an hour and begins with a segment.
func (repo *Repository) addSet(t *testing.T, hour int, segment uint64, verified bool) string {
	t.Helper()
	m := Manifest{
		Format: formatVersion, Name: testHour(hour).Format(stampLayout), SegmentBytes: testSegmentBytes, Timeline: 1,
		StartLSN: LSN(segment*testSegmentBytes + 40), Consistent: testHour(hour).Add(time.Minute),
	}
	dir := filepath.Join(repo.Dir, setsFolder, m.Name)
	err := errors.Join(os.Mkdir(dir, 0o700), writeJSON(filepath.Join(dir, manifestFile), m))
	if verified {
		err = errors.Join(err, writeJSON(filepath.Join(dir, verifyResultFile), VerifyResult{Verified: testHour(hour)}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.Name
}

// addSegments adds empty files for the segments first to last.
func (repo *Repository) addSegments(t *testing.T, first, last uint64) {
	t.Helper()
	for n := first; n <= last; n++ {
		name := segment{1, n}.name(testSegmentBytes) + gz
		if err := os.WriteFile(filepath.Join(repo.Dir, walFolder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// segments returns the numbers of the archive's first and last segment.
func (repo *Repository) segments(t *testing.T) string {
	t.Helper()
	a, err := readArchive(filepath.Join(repo.Dir, walFolder), testSegmentBytes)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	for s := range a.files {
		numbers = append(numbers, s.number)
	}
	slices.Sort(numbers)
	return fmt.Sprint(numbers)
}

// Retention keeps the newest sets, and an older one if it is the last that was
// verified. It removes the segments that no kept set needs.
func TestRetentionKeepsTheLastVerifiedSet(t *testing.T) {
	for _, tt := range []struct {
		name     string
		keep     int
		verified []int // hours
		want     []int // hours
		segments string
	}{
		{"none is verified", 2, nil, []int{4, 5}, "[8 9 10]"},
		{"an old one is verified", 2, []int{2}, []int{2, 4, 5}, "[4 5 6 7 8 9 10]"},
		{"two old ones are verified", 2, []int{1, 2}, []int{2, 4, 5}, "[4 5 6 7 8 9 10]"},
		{"a new one is verified, too", 2, []int{2, 4}, []int{4, 5}, "[8 9 10]"},
		{"one", 1, nil, []int{5}, "[10]"},
		{"the newest one stays in any case", 0, nil, []int{5}, "[10]"},
		{"more than there are", 9, nil, []int{1, 2, 3, 4, 5}, "[2 3 4 5 6 7 8 9 10]"},
	} {
		repo := newTestRepository(t)
		repo.Keep = tt.keep
		for hour := 1; hour <= 5; hour++ {
			repo.addSet(t, hour, uint64(2*hour), slices.Contains(tt.verified, hour))
		}
		repo.addSegments(t, 0, 10)
		if err := repo.applyRetention(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var kept []int
		sets, damaged := repo.Sets()
		for _, s := range sets {
			kept = append(kept, s.Consistent.Hour())
		}
		if !slices.Equal(kept, tt.want) || len(damaged) > 0 || repo.segments(t) != tt.segments {
			t.Errorf("%s: kept %v and segments %s, want %v and %s; damaged %v", tt.name, kept, repo.segments(t), tt.want, tt.segments, damaged)
		}
		if left, _ := filepath.Glob(filepath.Join(repo.Dir, setsFolder, ".*")); len(left) > 0 {
			t.Errorf("%s: left behind: %v", tt.name, left)
		}
	}
}

// Nothing is removed while a set can't be read: it may be the one that others need.
func TestRetentionStopsAtADamagedSet(t *testing.T) {
	repo := newTestRepository(t)
	var names []string
	for hour := 1; hour <= 4; hour++ {
		names = append(names, repo.addSet(t, hour, uint64(hour), false))
	}
	repo.addSegments(t, 0, 4)
	if err := os.WriteFile(filepath.Join(repo.Dir, setsFolder, names[3], manifestFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := repo.applyRetention(); err == nil || !strings.Contains(err.Error(), "no backup is removed while one can't be read") {
		t.Errorf("error %v", err)
	}
	if sets, damaged := repo.Sets(); len(sets) != 3 || len(damaged) != 1 || repo.segments(t) != "[0 1 2 3 4]" {
		t.Errorf("%d sets, %d damaged, segments %s", len(sets), len(damaged), repo.segments(t))
	}
}

// A restore starts from the newest set that was consistent at the moment.
func TestTheSetOfARestore(t *testing.T) {
	repo := newTestRepository(t)
	first, second := repo.addSet(t, 1, 1, false), repo.addSet(t, 2, 2, false)
	consistent := func(hour int) time.Time { return testHour(hour).Add(time.Minute) }
	for _, tt := range []struct {
		name, want, says string
		request          RestoreRequest
	}{
		{name: "the end of the archive", want: second},
		{name: "when the second was consistent", want: second, request: RestoreRequest{To: consistent(2)}},
		{name: "just before that", want: first, request: RestoreRequest{To: consistent(2).Add(-time.Microsecond)}},
		{name: "the first by its name", want: first, request: RestoreRequest{To: consistent(2), Set: first}},
		{name: "the second, before it was consistent", says: "is before the backup " + second, request: RestoreRequest{To: consistent(2).Add(-time.Second), Set: second}},
		{name: "before the first", says: "is before the oldest backup, " + first, request: RestoreRequest{To: consistent(1).Add(-time.Second)}},
		{name: "the future", says: "is in the future", request: RestoreRequest{To: time.Now().Add(time.Hour)}},
		{name: "an unknown name", says: `there is no backup "nightly"`, request: RestoreRequest{Set: "nightly"}},
	} {
		s, err := repo.chooseSet(tt.request)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: error %v, want %q", tt.name, err, tt.says)
			}
			continue
		}
		if err != nil || s.Name != tt.want {
			t.Errorf("%s: %v, %v, want %s", tt.name, s, err, tt.want)
		}
	}
}

// A base backup that ends at the end of a segment does not need the next one.
func TestTheLastSegmentOfABaseBackup(t *testing.T) {
	for stop, want := range map[LSN]uint64{5 * testSegmentBytes: 4, 5*testSegmentBytes + 1: 5, 6*testSegmentBytes - 1: 5} {
		m := &Manifest{Timeline: 1, SegmentBytes: testSegmentBytes, StopLSN: stop}
		if got := m.stopSegment(); got != (segment{1, want}) {
			t.Errorf("a backup that ends at %s needs segment %d, want %d", stop, got.number, want)
		}
	}
}

// Only one command at a time works in a repository, and the next one can begin when
// it has ended.
func TestTwoCommandsCannotWorkInARepository(t *testing.T) {
	repo := newTestRepository(t)
	release, err := repo.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.lock(); !errors.Is(err, ErrBusy) {
		t.Errorf("a second command: %v", err)
	}
	if _, err := repo.Verify(t.Context(), ""); !errors.Is(err, ErrBusy) {
		t.Errorf("a verify at the same time: %v", err)
	}
	release()
	if _, err := repo.Verify(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "there is no backup in") {
		t.Errorf("a verify afterwards: %v", err)
	}
	if _, err := repo.Verify(t.Context(), ""); errors.Is(err, ErrBusy) {
		t.Errorf("a failed verify kept the lock: %v", err)
	}
}
