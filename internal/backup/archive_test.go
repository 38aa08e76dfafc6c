package backup

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testSegment returns a segment of 1 MiB whose pages have the right headers, except
// for the unused pages of its second half.
func testSegment(number, systemID uint64) []byte {
	b := make([]byte, testSegmentBytes)
	for at := 0; at < testSegmentBytes/2; at += 8192 {
		binary.LittleEndian.PutUint16(b[at:], 0xD110)
		binary.LittleEndian.PutUint64(b[at+8:], number*testSegmentBytes+uint64(at))
	}
	binary.LittleEndian.PutUint64(b[24:], systemID)
	return b
}

// A segment must be complete, at its address, and of this database cluster.
func TestASegmentIsCheckedPageByPage(t *testing.T) {
	good := testSegment(5, 77)
	moved := bytes.Clone(good)
	binary.LittleEndian.PutUint64(moved[3*8192+8:], 5*testSegmentBytes)
	for _, tt := range []struct {
		name, says string
		content    []byte
	}{
		{"intact", "", good},
		{"truncated", "is truncated: it has less than 1048576 of 1048576 bytes", good[:len(good)-1]},
		{"too long", "is corrupt: it has more than 1048576 bytes", append(bytes.Clone(good), 0)},
		{"of another place", "is corrupt: the page at 0/500000 has the address 0/600000", testSegment(6, 77)},
		{"of another cluster", "is corrupt: it belongs to the database cluster 78, not to 77", testSegment(5, 78)},
		{"with a page of another place", "is corrupt: the page at 0/506000 has the address 0/500000", moved},
		{"empty", "is truncated", nil},
		{"all zero", "is corrupt: the page at 0/500000 has the address 0/0", make([]byte, testSegmentBytes)},
	} {
		for _, suffix := range []string{"", gz} {
			dir, s := t.TempDir(), segment{1, 5}
			name := s.name(testSegmentBytes) + suffix
			if suffix == gz {
				writeGzip(t, filepath.Join(dir, name), tt.content)
			} else if err := os.WriteFile(filepath.Join(dir, name), tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := readArchive(dir, testSegmentBytes)
			if err != nil {
				t.Fatal(err)
			}
			err = a.checkSegment(s, "77")
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), name+" "+tt.says) {
				t.Errorf("%s%s: %v, want %q", tt.name, suffix, err, tt.says)
			}
		}
	}
}
