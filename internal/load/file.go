package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// A header is the first line of a file.
type header struct {
	Format  string    `json:"format"`
	Began   time.Time `json:"began"`
	Dropped int       `json:"dropped,omitempty"`
}

const format = "switchyard history 1"

// maxLine bounds a line of a file, in bytes. Names and ids are far shorter.
const maxLine = 1 << 20

// Write writes the history as JSON lines: a header, then one line for each event.
func (h *History) Write(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	enc := json.NewEncoder(b)
	if err := enc.Encode(header{format, h.began, h.Counts().Dropped}); err != nil {
		return fmt.Errorf("write a history: %w", err)
	}
	for e := range h.all() {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("write a history: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write a history: %w", err)
	}
	return nil
}

// ReadHistory reads a history that Write or another program wrote. Its errors
// name the line.
func ReadHistory(r io.Reader) (*History, error) {
	h := NewHistory()
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 1<<16), maxLine)
	n := 0
	for lines.Scan() {
		var err error
		if n++; n == 1 {
			err = h.readHeader(lines.Bytes())
		} else {
			err = h.readEvent(lines.Bytes())
		}
		if err != nil {
			return nil, fmt.Errorf("line %d of the history: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	if n == 0 {
		return nil, errors.New("read the history: it is empty")
	}
	return h, nil
}

// readHeader reads the first line.
func (h *History) readHeader(line []byte) error {
	var head header
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	if head.Format != format {
		return fmt.Errorf("format must be %q, not %q", format, head.Format)
	}
	h.began, h.dropped = head.Began, head.Dropped
	return nil
}

// readEvent reads one event, and refuses it if a field is missing that Check
// needs.
func (h *History) readEvent(line []byte) error {
	e := event{Kind: kindCount}
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	switch {
	case e.Kind == kindCount:
		return errors.New("event is missing")
	case e.Room == "":
		return errors.New("room is missing")
	case e.Kind == gapDeclared && e.Seq < 1:
		return fmt.Errorf("a gap must begin at seq 1 or above, not %d", e.Seq)
	case (e.Kind <= unknown || e.Kind == delivered || e.Kind == lateAck) && e.ID == "":
		return errors.New("id is missing")
	case e.Kind >= joined && e.Kind != lateAck && e.Sub == "":
		return errors.New("sub is missing")
	}
	if h.total == h.limit {
		return fmt.Errorf("more than %d events can't be checked", h.limit)
	}
	h.add(e)
	return nil
}
