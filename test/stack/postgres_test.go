//go:build stack

package stack

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// sql runs a query on one of the two PostgreSQL servers.
func (s *stack) sql(t *testing.T, server, query string) string {
	t.Helper()
	out, err := s.compose("exec", "-T", server, "psql", "-U", "postgres", "-d", "switchyard", "-Atqc", query)
	return must(t, out, err)
}

// The standby has the primary's messages, and each finished segment of the WAL goes into
// the archive.
func TestAReplicaFollowsAndTheArchiveFills(t *testing.T) {
	c := sharedStack.connect(t, "ada", nil)
	ack, err := c.Publish(t.Context(), "archive", json.RawMessage(`"kept twice"`), "")
	if err != nil {
		t.Fatal(err)
	}
	count := `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'archive' AND m.seq = ` + strconv.FormatUint(uint64(ack.Seq), 10)
	eventuallyWithin(t, 10*time.Second, "the message on the standby", func() error {
		if n := sharedStack.sql(t, "postgres_replica", count); n != "1" {
			return fmt.Errorf("%s rows", n)
		}
		return nil
	})
	if got := sharedStack.sql(t, "postgres", "SELECT application_name, state, sync_state FROM pg_stat_replication"); got != "postgres_replica|streaming|async" {
		t.Errorf("replication: %s", got)
	}
	segment := sharedStack.sql(t, "postgres", "SELECT pg_walfile_name(pg_switch_wal() - 1)")
	testkit.EventuallyNil(t, "the segment in the archive", func() error {
		f, err := os.Open(filepath.Join(sharedStack.path("backups/wal"), segment+".gz"))
		if err != nil {
			return err
		}
		defer f.Close()
		unpacked, err := gzip.NewReader(f)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, unpacked)
		if err == nil && n != 16<<20 {
			err = fmt.Errorf("%d bytes", n)
		}
		return err
	})
	if failed := sharedStack.sql(t, "postgres", "SELECT failed_count FROM pg_stat_archiver"); failed != "0" {
		t.Errorf("%s segments could not be archived at first", failed)
	}
	if most := sharedStack.sql(t, "postgres", "SELECT count(*) || ' of ' || current_setting('max_connections') FROM pg_stat_activity"); !strings.HasSuffix(most, " of 200") {
		t.Error(most)
	} else {
		t.Logf("%s connections are open", most)
	}
}

// This measures the use of disk in docs/capacity.md.
func TestDiskUsePerMessage(t *testing.T) {
	sizes := func() (table, wal float64) {
		line := sharedStack.sql(t, "postgres", `CHECKPOINT; SELECT pg_total_relation_size('messages') + pg_total_relation_size('message_ids') || ' ' || pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')`)
		if _, err := fmt.Sscan(line, &table, &wal); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return table, wal
	}
	table, wal := sizes()
	run := sharedStack.startRun(t, load.Plan{Clients: 20, Rooms: 5, Rate: 500, Duration: 20 * time.Second}, 20)
	report := run.Report()
	if report.Verdict != load.Clean || report.Acked < 1000 {
		t.Fatalf("%s", report)
	}
	tableAfter, walAfter := sizes()
	n := float64(report.Acked)
	each := (tableAfter - table) / n
	t.Logf("%d messages of 128 bytes: %.0f bytes each in tables and indexes, %.0f of WAL", report.Acked, each, (walAfter-wal)/n)
	if each < 128 || each > 1500 {
		t.Errorf("%.0f bytes a message", each)
	}
}
