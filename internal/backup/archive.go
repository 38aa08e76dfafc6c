package backup

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An walArchive is what the WAL archive holds, as seen once. Segments lie in it
// under PostgreSQL's names, as they are or with .gz behind the name.
type walArchive struct {
	dir          string
	segmentBytes int64              // of a segment
	files        map[segment]string // name in dir
	history      map[uint32][]fork  // by timeline, its ancestors, oldest first
	newest       time.Time          // of the segment that came last
	size         int64              // of all files
}

// A fork is where a timeline left its parent.
type fork struct {
	parent uint32
	at     LSN
}

const gz = ".gz"

// readArchive lists the archive.
func readArchive(dir string, bytes int64) (*walArchive, error) {
	a := &walArchive{dir: dir, segmentBytes: bytes, files: map[segment]string{}, history: map[uint32][]fork{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the WAL archive: %w", err)
	}
	for _, e := range entries {
		if err := a.add(e); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *walArchive) add(e fs.DirEntry) error {
	if e.IsDir() { // what a restore has staged
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a temporary file that got its name meanwhile
	}
	if err != nil {
		return fmt.Errorf("read the WAL archive: %w", err)
	}
	plain := strings.TrimSuffix(e.Name(), gz)
	a.size += info.Size()
	if s, ok := parseSegment(plain, a.segmentBytes); ok {
		a.files[s] = e.Name()
		if info.ModTime().After(a.newest) {
			a.newest = info.ModTime()
		}
		return nil
	}
	if id, found := strings.CutSuffix(plain, ".history"); found && len(id) == 8 {
		timeline, err := strconv.ParseUint(id, 16, 32)
		if err != nil {
			return nil
		}
		a.history[uint32(timeline)], err = a.readHistory(e.Name())
		return err
	}
	return nil
}

// readHistory reads the history file of a timeline: a line an ancestor.
func (a *walArchive) readHistory(name string) (forks []fork, err error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 2 {
			return nil, a.corrupt(name, "a line has no position")
		}
		parent, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return nil, a.corrupt(name, "a line names no timeline")
		}
		at, err := ParseLSN(fields[1])
		if err != nil {
			return nil, a.corrupt(name, err.Error())
		}
		forks = append(forks, fork{uint32(parent), at})
	}
	if err := lines.Err(); err != nil {
		return nil, a.corrupt(name, err.Error())
	}
	if len(forks) == 0 {
		return nil, a.corrupt(name, "it names no ancestor")
	}
	return forks, nil
}

// corrupt returns the error for a file that is not what it should be.
func (a *walArchive) corrupt(name, why string) error {
	return &DamageError{File: filepath.Join(a.dir, name), Why: why}
}

// A DamageError names a file of a backup or of the archive that is missing or
// not what was written.
type DamageError struct{ File, Why string }

func (e *DamageError) Error() string { return e.File + " " + e.Why }

// open opens a file of the archive and unpacks it.
func (a *walArchive) open(name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(a.dir, name))
	if err != nil {
		return nil, fmt.Errorf("read the WAL archive: %w", err)
	}
	if !strings.HasSuffix(name, gz) {
		return f, nil
	}
	r, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<17))
	if err != nil {
		return nil, errors.Join(a.corrupt(name, "is corrupt: it is no gzip file"), f.Close())
	}
	return &gzipFile{Reader: r, file: f}, nil
}

type gzipFile struct {
	*gzip.Reader
	file *os.File
}

func (u *gzipFile) Close() error { return errors.Join(u.Reader.Close(), u.file.Close()) }

// latestTimeline returns the timeline that a recovery from this one ends on unless told
// otherwise: the highest one that descends from it.
func (a *walArchive) latestTimeline(timeline uint32) uint32 {
	last := timeline
	for t, forks := range a.history {
		if t > last && slices.ContainsFunc(forks, func(f fork) bool { return f.parent == timeline }) {
			last = t
		}
	}
	return last
}

// A chain is the segments of a recovery, in order.
type chain struct {
	segments []segment
	// missing is the first segment that is not there though later ones are, and
	// after is how many of them there are.
	missing       string
	laterSegments int
}

// chain returns the segments from start on the way to a timeline. Where a
// timeline forks, the younger one's segment is taken, as PostgreSQL does.
func (a *walArchive) chain(start LSN, from, to uint32) (c chain, err error) {
	begins := map[uint32]uint64{from: segmentOf(start, a.segmentBytes)}
	ends := map[uint32]uint64{}
	order := []uint32{from}
	if to != from {
		forks := a.history[to]
		i := slices.IndexFunc(forks, func(f fork) bool { return f.parent == from })
		if i < 0 {
			return c, fmt.Errorf("timeline %d does not descend from timeline %d, on which the backup was made: %s", to, from, filepath.Join(a.dir, fmt.Sprintf("%08X.history", to)))
		}
		for ; i < len(forks); i++ {
			next := to
			if i+1 < len(forks) {
				next = forks[i+1].parent
			}
			number := segmentOf(forks[i].at, a.segmentBytes)
			ends[forks[i].parent], begins[next] = number, number
			order = append(order, next)
		}
	}
	slices.Reverse(order) // youngest first
	last := a.lastNumber(order, begins, ends)
	for number := begins[from]; number <= last; number++ {
		s, found := a.pick(number, order, begins, ends)
		switch {
		case found && c.missing == "":
			c.segments = append(c.segments, s)
		case found:
			c.laterSegments++
		case c.missing == "":
			c.missing = segment{from, number}.name(a.segmentBytes)
			for _, t := range order {
				if number >= begins[t] {
					c.missing = segment{t, number}.name(a.segmentBytes)
					break
				}
			}
		}
	}
	return c, nil
}

// lastNumber returns the highest number of a segment on the way.
func (a *walArchive) lastNumber(order []uint32, begins, ends map[uint32]uint64) (last uint64) {
	for s := range a.files {
		end, ended := ends[s.timeline]
		if slices.Contains(order, s.timeline) && s.number >= begins[s.timeline] && (!ended || s.number <= end) {
			last = max(last, s.number)
		}
	}
	return last
}

func (a *walArchive) pick(number uint64, order []uint32, begins, ends map[uint32]uint64) (segment, bool) {
	for _, t := range order {
		end, ended := ends[t]
		s := segment{t, number}
		if number >= begins[t] && (!ended || number <= end) && a.files[s] != "" {
			return s, true
		}
	}
	return segment{}, false
}

// checkSegment reads a segment whole: it must have its size, be of this database
// cluster, and each page must be where it says. Whether each record is sound is
// for PostgreSQL to say when it replays them.
func (a *walArchive) checkSegment(s segment, systemID string) error {
	name := a.files[s]
	r, err := a.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	const pageSize = 8192
	page := make([]byte, pageSize)
	start := s.number * uint64(a.segmentBytes)
	for offset := int64(0); offset < a.segmentBytes; offset += pageSize {
		if _, err := io.ReadFull(r, page); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return a.corrupt(name, fmt.Sprintf("is cut short: it ends after less than %d of %d bytes", offset+pageSize, a.segmentBytes))
			}
			return a.corrupt(name, fmt.Sprintf("is corrupt: %v", err))
		}
		why := checkPage(page, start+uint64(offset), offset == 0, systemID)
		if why != "" {
			return a.corrupt(name, "is corrupt: "+why)
		}
	}
	switch n, err := r.Read(page[:1]); {
	case n > 0:
		return a.corrupt(name, fmt.Sprintf("is corrupt: it has more than %d bytes", a.segmentBytes))
	case err != nil && !errors.Is(err, io.EOF): // gzip's own sum
		return a.corrupt(name, fmt.Sprintf("is corrupt: %v", err))
	}
	return nil
}

// checkPage holds the header of a WAL page against its place. The layout is
// that of XLogPageHeaderData, the same since PostgreSQL 9.3: magic, info,
// timeline, address; a long header adds the system identifier.
func checkPage(page []byte, address uint64, first bool, systemID string) string {
	magic := binary.LittleEndian.Uint16(page)
	at := binary.LittleEndian.Uint64(page[8:])
	if magic == 0 && at == 0 && !first {
		return "" // never written: the segment was switched before it was full
	}
	if at != address {
		return fmt.Sprintf("the page at %s says that it is the one at %s", LSN(address), LSN(at))
	}
	if !first {
		return ""
	}
	if id := strconv.FormatUint(binary.LittleEndian.Uint64(page[24:]), 10); systemID != "" && id != systemID {
		return fmt.Sprintf("it is of the database cluster %s, not of %s", id, systemID)
	}
	return ""
}
