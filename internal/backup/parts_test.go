package backup

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheEOFMarkIsStrippedFromASnapshot(t *testing.T) {
	mark := strings.Repeat("0123456789abcdef", 3)[:eofMarkSize]
	for in, want := range map[string]string{
		"REDIS" + mark: "REDIS", "REDIS\xff12345678": "REDIS\xff12345678", "": "", "short": "short",
		mark + "x": mark + "x", mark: "",
	} {
		for _, chunk := range []int{1, 7, 100} {
			var out bytes.Buffer
			u := &eofMarkStripper{to: &out}
			for rest := in; rest != ""; {
				n := min(chunk, len(rest))
				if _, err := u.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := u.flush(); err != nil || out.String() != want {
				t.Errorf("%q in chunks of %d: %q, %v", in, chunk, out.String(), err)
			}
		}
	}
}

func TestARedisSnapshotIsCheckedAgainstItsChecksum(t *testing.T) {
	// Written by Redis 7.0, without keys.
	whole := []byte("REDIS0010\xfa\tredis-ver\x067.0.15\xff")
	path := filepath.Join(t.TempDir(), redisFile)
	check := func(b []byte) error {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return checkRDB(path)
	}
	if err := check(append(whole, make([]byte, 8)...)); err != nil { // rdbchecksum no
		t.Error(err)
	}
	for says, b := range map[string][]byte{
		"is truncated": []byte("REDIS"), "is not a snapshot": []byte("PGDMP45678901234567890"),
		"its checksum does not match": append(whole, 1, 2, 3, 4, 5, 6, 7, 8),
	} {
		if err := check(b); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

func TestLSNsAndSegmentsAreNamedAsInPostgreSQL(t *testing.T) {
	l, err := ParseLSN("16/B374D848")
	if err != nil || l.String() != "16/B374D848" || uint64(l) != 0x16B374D848 {
		t.Errorf("%v, %v", l, err)
	}
	for _, bad := range []string{"", "16", "x/1", "1/x", "1/123456789"} {
		if _, err := ParseLSN(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	const size = 16 << 20
	s := segment{3, segmentOf(l, size)}
	if got := s.name(size); got != "0000000300000016000000B3" {
		t.Error(got)
	}
	if back, ok := parseSegment(s.name(size), size); !ok || back != s {
		t.Errorf("%v", back)
	}
	for _, bad := range []string{"", "00000001.history", "000000010000000000000100", "00000001000000000000000a", "000000010000000000000001.partial"} {
		if _, ok := parseSegment(bad, size); ok {
			t.Errorf("%q was accepted as a segment", bad)
		}
	}
}

// A base backup whose label or manifest lacks its position in the WAL is refused.
func TestThePositionOfABaseBackupIsRequired(t *testing.T) {
	const label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n"
	for says, text := range map[string][2]string{
		"backup_label has no start location":          {"", `{"WAL-Ranges":[{"Timeline":1,"End-LSN":"0/2000100"}]}`},
		"backup_manifest can't be read: unexpected":   {label, "{"},
		"backup_manifest has no WAL range":            {label, "{}"},
		`"0/x" is not a position in the WAL, such as`: {label, `{"WAL-Ranges":[{"Timeline":1,"End-LSN":"0/x"}]}`},
	} {
		b := new(builder)
		if err := b.recordLSNs([]byte(text[0]), []byte(text[1])); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%v, want %q", err, says)
		}
	}
	b := new(builder)
	if err := b.recordLSNs([]byte(label), []byte(`{"WAL-Ranges":[{"Timeline":1,"End-LSN":"0/2000100"}]}`)); err != nil || b.manifest.StartLSN != 0x2000028 || b.manifest.StopLSN != 0x2000100 || b.manifest.Timeline != 1 {
		t.Errorf("%+v, %v", b.manifest, err)
	}
}

// A recovery uses the younger timeline's segment where both have one, and no segment
// of the older timeline after the fork.
func TestASegmentChainFollowsTimelines(t *testing.T) {
	const size = 1 << 20
	files := func(names ...segment) map[segment]string {
		m := map[segment]string{}
		for _, s := range names {
			m[s] = s.name(size)
		}
		return m
	}
	a := &walArchive{segmentBytes: size, history: map[uint32][]fork{
		2: {{1, LSN(3*size + 100)}}, 3: {{1, LSN(3*size + 100)}, {2, LSN(5 * size)}},
	}}
	for _, tt := range []struct {
		name     string
		files    map[segment]string
		from, to uint32
		want     []segment
		missing  string
	}{
		{"one timeline", files(segment{1, 2}, segment{1, 3}, segment{1, 4}), 1, 1, []segment{{1, 2}, {1, 3}, {1, 4}}, ""},
		{"a second one", files(segment{1, 2}, segment{1, 3}, segment{1, 4}, segment{1, 9}, segment{2, 3}, segment{2, 4}), 1, 2, []segment{{1, 2}, {2, 3}, {2, 4}}, ""},
		{"its first segment is not there yet", files(segment{1, 2}, segment{1, 3}), 1, 2, []segment{{1, 2}, {1, 3}}, ""},
		{"a third one", files(segment{1, 2}, segment{2, 3}, segment{2, 4}, segment{2, 5}, segment{3, 5}, segment{3, 6}), 1, 3, []segment{{1, 2}, {2, 3}, {2, 4}, {3, 5}, {3, 6}}, ""},
		{"a missing segment", files(segment{1, 2}, segment{1, 4}, segment{1, 5}), 1, 1, []segment{{1, 2}}, segment{1, 3}.name(size)},
		{"no segment", files(), 1, 1, nil, ""},
	} {
		a.files = tt.files
		c, err := a.chain(LSN(2*size+5), tt.from, tt.to)
		if err != nil || len(c.segments) != len(tt.want) || c.missing != tt.missing {
			t.Errorf("%s: %+v, %v", tt.name, c, err)
			continue
		}
		for i := range tt.want {
			if c.segments[i] != tt.want[i] {
				t.Errorf("%s: %+v, want %+v", tt.name, c.segments, tt.want)
			}
		}
	}
	if _, err := a.chain(0, 7, 2); err == nil {
		t.Error("a timeline that is not a descendant was accepted")
	}
	if a.latestTimeline(1) != 3 || a.latestTimeline(2) != 3 || a.latestTimeline(3) != 3 {
		t.Error("the latest timeline is not 3")
	}
}

func TestMetricsOfAnEmptyFolder(t *testing.T) {
	v := &Repository{Dir: t.TempDir()}
	if err := v.WriteMetrics(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(v.Dir, metricsFolder, "switchyard_backup.prom"))
	if err != nil || !strings.Contains(string(b), "\nswitchyard_backup_last_success_timestamp_seconds 0.000\n") {
		t.Errorf("%s, %v", b, err)
	}
	v.Dir += "/none"
	if err := v.WriteMetrics(); err == nil || !strings.Contains(err.Error(), "BACKUP_DIR: ") {
		t.Errorf("a missing folder: %v", err)
	}
	if got := unixSeconds(time.Unix(1, 5e8)); got != 1.5 {
		t.Error(got)
	}
}
