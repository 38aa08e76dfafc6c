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

// A walArchive is a listing of the WAL archive at one moment. The files of the
// archive have PostgreSQL's names, with .gz appended if they are compressed.
type walArchive struct {
	dir          string
	segmentBytes int64              // the size of a segment
	files        map[segment]string // the name of each segment's file in dir
	history      map[uint32][]fork  // the ancestors of each timeline, oldest first
	newest       time.Time          // when the newest segment arrived
	size         int64              // of all files, in bytes
}

// A fork is the position at which a timeline left its parent.
type fork struct {
	parent uint32
	at     LSN
}

const gz = ".gz"

// readArchive lists the archive, whose segments have this many bytes.
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

// add adds a file of the archive, if it is a segment or a timeline's history.
func (a *walArchive) add(e fs.DirEntry) error {
	if e.IsDir() { // the staging folder of a restore
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a temporary file that was renamed since
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

// readHistory reads the history file of a timeline, with a line for each ancestor.
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
			return nil, a.corrupt(name, "has a line without a position")
		}
		parent, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return nil, a.corrupt(name, "has a line without a timeline")
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
		return nil, a.corrupt(name, "names no ancestor")
	}
	return forks, nil
}

// corrupt returns a DamageError for a file of the archive.
func (a *walArchive) corrupt(name, why string) error {
	return &DamageError{File: filepath.Join(a.dir, name), Why: why}
}

// A DamageError names a file of a backup or of the archive that is missing or
// damaged. Why continues a sentence that begins with the file's name.
type DamageError struct{ File, Why string }

func (e *DamageError) Error() string { return e.File + " " + e.Why }

// open opens a file of the archive, and decompresses it if it is compressed.
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
		return nil, errors.Join(a.corrupt(name, "is corrupt: it is not a gzip file"), f.Close())
	}
	return &gzipFile{Reader: r, file: f}, nil
}

// A gzipFile reads a compressed file. Close closes the file, too.
type gzipFile struct {
	*gzip.Reader
	file *os.File
}

func (g *gzipFile) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }

// latestTimeline returns the timeline on which a recovery ends by default: the
// highest one that descends from the given one.
func (a *walArchive) latestTimeline(timeline uint32) uint32 {
	last := timeline
	for t, forks := range a.history {
		if t > last && slices.ContainsFunc(forks, func(f fork) bool { return f.parent == timeline }) {
			last = t
		}
	}
	return last
}

// A chain is the list of segments that a recovery replays, in order.
type chain struct {
	segments []segment
	// missing is the first segment that the archive lacks although it has later
	// ones, and laterSegments is how many of these it has.
	missing       string
	laterSegments int
}

// chain returns the segments from start, on timeline from, to the end of timeline
// to. Where both timelines of a fork have a segment it is the younger one's, as in
// PostgreSQL.
func (a *walArchive) chain(start LSN, from, to uint32) (c chain, err error) {
	begins := map[uint32]uint64{from: segmentOf(start, a.segmentBytes)}
	ends := map[uint32]uint64{}
	order := []uint32{from}
	if to != from {
		forks := a.history[to]
		i := slices.IndexFunc(forks, func(f fork) bool { return f.parent == from })
		if i < 0 {
			return c, fmt.Errorf("timeline %d does not descend from timeline %d, on which the backup was made; see %s", to, from, filepath.Join(a.dir, fmt.Sprintf("%08X.history", to)))
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

// lastNumber returns the highest number of a segment on the timelines of order,
// each within its begin and end.
func (a *walArchive) lastNumber(order []uint32, begins, ends map[uint32]uint64) (last uint64) {
	for s := range a.files {
		end, ended := ends[s.timeline]
		if slices.Contains(order, s.timeline) && s.number >= begins[s.timeline] && (!ended || s.number <= end) {
			last = max(last, s.number)
		}
	}
	return last
}

// pick returns the segment of a number on the youngest timeline that has it.
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

// checkSegment reads a segment to its end. It must have the right size, belong to
// this database cluster, and each page must be at its address. It does not check
// the records: PostgreSQL does that when it replays them.
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
				return a.corrupt(name, fmt.Sprintf("is truncated: it has less than %d of %d bytes", offset+pageSize, a.segmentBytes))
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
	case err != nil && !errors.Is(err, io.EOF): // gzip's checksum
		return a.corrupt(name, fmt.Sprintf("is corrupt: %v", err))
	}
	return nil
}

// checkPage compares the header of a WAL page with the page's address, and returns
// what is wrong, or "". The layout is that of XLogPageHeaderData, unchanged since
// PostgreSQL 9.3: magic, info, timeline, address; the long header of a segment's
// first page adds the system identifier.
func checkPage(page []byte, address uint64, first bool, systemID string) string {
	magic := binary.LittleEndian.Uint16(page)
	at := binary.LittleEndian.Uint64(page[8:])
	if magic == 0 && at == 0 && !first {
		return "" // never written: the segment was switched before it was full
	}
	if at != address {
		return fmt.Sprintf("the page at %s has the address %s", LSN(address), LSN(at))
	}
	if !first {
		return ""
	}
	if id := strconv.FormatUint(binary.LittleEndian.Uint64(page[24:]), 10); systemID != "" && id != systemID {
		return fmt.Sprintf("it belongs to the database cluster %s, not to %s", id, systemID)
	}
	return ""
}
