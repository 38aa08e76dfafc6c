//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// sql asks one of the two PostgreSQL servers.
func (s *stack) sql(t *testing.T, server, query string) string {
	t.Helper()
	out, err := s.compose("exec", "-T", server, "psql", "-U", "postgres", "-d", "switchyard", "-Atqc", query)
	return must(t, out, err)
}

// The replica has what the primary has, and each finished piece of the log goes
// into the archive.
func TestAReplicaFollowsAndTheArchiveFills(t *testing.T) {
	c := the.connect(t, "ada", nil)
	ack, err := c.Publish(t.Context(), "archive", json.RawMessage(`"kept twice"`), "")
	if err != nil {
		t.Fatal(err)
	}
	count := `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'archive' AND m.seq = ` + strconv.FormatUint(uint64(ack.Seq), 10)
	eventually(t, 10*time.Second, "the message on the replica", func() error {
		if n := the.sql(t, "postgres_replica", count); n != "1" {
			return fmt.Errorf("%s rows", n)
		}
		return nil
	})
	if got := the.sql(t, "postgres", "SELECT application_name, state, sync_state FROM pg_stat_replication"); got != "postgres_replica|streaming|async" {
		t.Errorf("replication: %s", got)
	}
	segment := the.sql(t, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
	eventually(t, 30*time.Second, "the segment in the archive", func() error {
		info, err := os.Stat(filepath.Join(the.path("backups/wal"), segment))
		if err == nil && info.Size() != 16<<20 {
			err = fmt.Errorf("%d bytes", info.Size())
		}
		return err
	})
	if failed := the.sql(t, "postgres", "SELECT failed_count FROM pg_stat_archiver"); failed != "0" {
		t.Errorf("%s segments could not be archived at first", failed)
	}
	if most := the.sql(t, "postgres", "SELECT count(*) || ' of ' || current_setting('max_connections') FROM pg_stat_activity"); !strings.HasSuffix(most, " of 200") {
		t.Error(most)
	} else {
		t.Logf("%s connections are open", most)
	}
}

// One setting makes the replica synchronous, without anybody being cut off for
// longer than PostgreSQL's restart; nothing is stored while it is away.
// Promotion is one command: what was acked is there, the epoch changes, the old
// primary can't come back as one, and becomes a standby when its disk is cleared.
// The last test on this stack.
func TestZPromotion(t *testing.T) {
	epochs := make(chan message.Epoch, 16)
	c := the.connect(t, "ada", nil)
	joined, err := c.Join(t.Context(), "promotion", client.Start(), client.Handler{
		Message: func(message.Message) {},
		Gap:     func(g client.Gap) { epochs <- g.Epoch },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), "promotion", json.RawMessage(`"before"`), ""); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := the.run("env", "COMPOSE_PROJECT_NAME="+the.name, "./promote")
	must(t, out, err)
	t.Logf("promote took %.1f s", time.Since(began).Seconds())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ack, err := c.Publish(ctx, "promotion", json.RawMessage(`"after"`), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the first ack of the new primary came %.1f s after the command", time.Since(began).Seconds())
	if ack.Epoch == joined.Epoch {
		t.Error("the epoch is the same after an asynchronous failover")
	}
	select {
	case epoch := <-epochs:
		if epoch != ack.Epoch {
			t.Errorf("told of epoch %s, acked in %s", epoch, ack.Epoch)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody told the client that its positions are void")
	}
	if n := the.sql(t, "postgres_replica", `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'promotion'`); n != "2" {
		t.Errorf("%s messages, not 2: a planned promotion loses nothing", n)
	}
	// Whoever starts everything again does not get two primaries.
	_, _ = the.compose("up", "-d", "--no-deps", "postgres")
	eventually(t, 30*time.Second, "the old primary's refusal", func() error {
		if out := must1(the.compose("logs", "--no-color", "--tail", "20", "postgres")); !strings.Contains(out, "Remove its volume") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	out, err = the.compose("rm", "-sf", "postgres")
	must(t, out, err)
	out, err = the.run("docker", "volume", "rm", the.name+"_postgres")
	must(t, out, err)
	out, err = the.compose("up", "-d", "--no-deps", "--wait", "--wait-timeout", "120", "postgres")
	must(t, out, err)
	eventually(t, 30*time.Second, "the old primary as a standby", func() error {
		if got := the.sql(t, "postgres_replica", "SELECT application_name, state FROM pg_stat_replication"); got != "postgres|streaming" {
			return fmt.Errorf("replication: %s", got)
		}
		return nil
	})
}
