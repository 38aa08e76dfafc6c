package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// startStandby starts a copy of a server that stays in recovery.
func startStandby(t *testing.T, primary *testkit.PG, conf ...string) *testkit.PG {
	t.Helper()
	primary.Stop()
	standby := testkit.StartPreparedPostgres(t, func(data string, user *testkit.User) error {
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", primary.DataDir(), data).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o600)
	}, conf...)
	primary.Start()
	return standby
}

// startStreaming starts a standby that receives the WAL of a server.
func startStreaming(t *testing.T, primary *testkit.PG) *testkit.PG {
	t.Helper()
	standby := startStandby(t, primary, "wal_retrieve_retry_interval=50ms",
		fmt.Sprintf("primary_conninfo='host=127.0.0.1 port=%d user=postgres'", primary.Port()))
	testkit.Eventually(t, "the standby streams", func() bool {
		return primary.Query("SELECT state FROM pg_stat_replication") == "streaming"
	})
	return standby
}

// After a failover the first host of the URL is the standby.
func TestOfSeveralHostsThePrimaryIsUsed(t *testing.T) {
	t.Parallel()
	primary := testkit.StartPostgres(t)
	f := &fixture{t: t, pg: primary, url: primary.URL()}
	standby := startStandby(t, primary) // with an empty schema
	for verb, err := range map[string]error{
		"migrate": Migrate(t.Context(), standby.URL()),
		"open":    func() error { _, err := OpenPostgres(t.Context(), Config{URL: standby.URL()}); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "read-only standby: name the primary") {
			t.Errorf("%s a standby: %v", verb, err)
		}
	}
	f.url = strings.Replace(f.url, "@", fmt.Sprintf("@127.0.0.1:%d,", standby.Port()), 1)
	f.migrate()
	f.startNode().mustPublish("room", "1", "x")
}

// The address for writers leads to a standby for a while after a failover. A publish
// waits until it leads to the primary again, and nothing is read from the standby.
func TestTheAddressOfThePrimaryLeadsToAStandbyForAWhile(t *testing.T) {
	t.Parallel()
	primary := testkit.StartPostgres(t)
	f := newPostgresFixture(t, primary)
	standby := startStandby(t, primary)
	addr := fmt.Sprintf("127.0.0.1:%d", primary.Port())
	proxy := testkit.NewProxy(t, addr)
	f.url = strings.Replace(f.url, addr, proxy.Addr(), 1)
	logs := new(testkit.Logs)
	n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	n.mustPublish("room", "1", "x")
	proxy.Retarget(fmt.Sprintf("127.0.0.1:%d", standby.Port()))
	proxy.Cut()
	p := n.append("room", "ann", "2", "x")
	refused := func() error {
		_, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1, MaxBytes: 10})
		return err
	}
	testkit.Eventually(t, "a reader is refused by what it reached", func() bool {
		err := refused()
		if err == nil {
			t.Fatal("the standby was read")
		}
		return strings.Contains(err.Error(), "read-only standby")
	})
	proxy.Retarget(addr)
	if wait(t, p); p.Err != nil || p.Seq != 2 {
		t.Errorf("the publish of that time: %+v", p)
	}
	testkit.EventuallyNil(t, "readers reach the primary", refused)
	// One line for the first error, one that says what to do if that was another one, and one for the end.
	for line, most := range map[string]int{"the log cannot be written": 2, "name the primary": 1, "the log can be written again": 1} {
		if got := logs.Count(line); got > most {
			t.Errorf("%q was logged %d times:\n%s", line, got, logs.String())
		}
	}
}

// A commit waits for a synchronous standby that is away. Nobody sees its message before
// the standby has it: it would be gone after a failover, although its epoch stays. The
// commits that wait do not use up the connections of the server.
func TestWhatASynchronousStandbyLacksIsShownToNobody(t *testing.T) {
	t.Parallel()
	primary := testkit.StartPostgres(t)
	f := newPostgresFixture(t, primary)
	standby := startStreaming(t, primary)
	primary.Exec("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	testkit.Eventually(t, "the standby is synchronous", func() bool {
		return primary.Query("SELECT sync_state FROM pg_stat_replication") == "sync"
	})
	other := f.startNode()
	other.mustPublish("room", "1", "x")
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	feed := feedReader{n: other, cursor: other.currentCursor()}
	waiting := func() int {
		count, _ := strconv.Atoi(primary.Query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
		return count
	}

	standby.Stop()
	const rooms = 8 // of both append workers
	for round := range 2 {
		var pubs []*message.Publication
		for i := range rooms {
			pubs = append(pubs, n.append(numbered("away", round*rooms+i), "ann", "id", "x"))
		}
		for _, p := range pubs {
			if wait(t, p); !errors.Is(p.Err, message.ErrUnavailable) {
				t.Errorf("a publish while the standby is away: %+v", p)
			}
		}
	}
	// One of each append worker; one more if the server had not begun the first.
	if got := waiting(); got < 1 || got > 3 {
		t.Errorf("%d commits wait", got)
	}
	if got := feed.read(); got != "map[]" {
		t.Errorf("the feed reports %s, which the standby lacks", got)
	}
	for _, w := range workersOf(n.logUnderTest) {
		w.lastOK.Add(-int64(5 * time.Second))
	}
	testkit.Eventually(t, "the check names the standby", func() bool {
		err := n.Check()
		return err != nil && strings.Contains(err.Error(), "synchronous_standby_names")
	})

	standby.Start()
	for i := range 2 * rooms {
		room := numbered("away", i)
		p := other.mustPublish(room, "id", "x") // sent again
		if all := other.readAll(room); len(all) != 1 || p.Seq != 1 {
			t.Errorf("%s has %d messages; the answer was %+v", room, len(all), p)
		}
	}
	testkit.EventuallyNil(t, "the node stores messages again", func() error { return n.publish("room", "ann", "2", "x").Err })
	if got := waiting(); got != 0 {
		t.Errorf("%d commits still wait", got)
	}
}

// A standby takes over that lacks acked messages, though the operator trusts it. A node
// that has seen nothing of them comes first, keeps the epoch, and stores more than was
// lost. A node that has seen them begins a new epoch nevertheless: in the old one, two
// messages have the same seq.
func TestATrustedFailoverThatLostMessagesBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	primary := testkit.StartPostgres(t)
	f := newPostgresFixture(t, primary)
	standby := startStreaming(t, primary)
	proxy := testkit.NewProxy(t, fmt.Sprintf("127.0.0.1:%d", standby.Port()))
	trusting := func(c *Config) { c.TrustFailover = true }
	f.url = strings.Replace(f.url, "@", "@"+proxy.Addr()+",", 1)
	n := f.startNode(trusting)
	old := n.mustPublish("room", "1", "x")
	testkit.Eventually(t, "the standby has the message", func() bool {
		return standby.Query("SELECT count(*) FROM messages") == "1"
	})
	standby.Stop()
	n.mustPublish("room", "2", "lost")
	cursor := n.currentCursor()
	flushed, _ := strconv.ParseInt(primary.Query(`SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`), 10, 64)
	testkit.Eventually(t, "a ping sees the WAL", func() bool { return n.logUnderTest.(*Postgres).wal.load().position >= flushed })
	proxy.Refuse(true)
	primary.Kill()
	standby.Start()
	standby.Exec("SELECT pg_promote()")

	after := &fixture{t: t, url: standby.URL(), pg: standby, maxNodes: 2}
	fresh := after.startNode(trusting)
	var p *message.Publication
	for more := true; more; {
		p = fresh.mustPublish("room", fmt.Sprintf("other-%s", standby.Query("SELECT head FROM rooms")), "x")
		more = standby.Query(fmt.Sprintf(`SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint <= %d`, flushed)) == "t"
	}
	if p.Epoch != old.Epoch {
		t.Error("the failover was not trusted")
	}
	proxy.Refuse(false)
	n.expectNewEpoch(old.Epoch, cursor, p.Seq+1)
	if q := fresh.mustPublish("room", "last", "x"); q.Epoch != n.epoch() {
		t.Errorf("the nodes differ in the epoch: %s and %s", q.Epoch, n.epoch())
	}
}

func TestWhichServersLackWALThatWasSeen(t *testing.T) {
	seen := seenWAL{timeline: "00000002", position: 100}
	for _, c := range []struct {
		what          string
		timeline      string
		wal, replayed int64
		missing       bool
	}{
		{"the same server", "00000002", 100, 0, false},
		{"the same server after a crash", "00000002", 100, 90, false},
		{"an older copy of it", "00000002", 99, 99, true},
		{"a standby that had all of it", "00000003", 200, 100, false},
		{"a standby that lacked some", "00000003", 200, 99, true},
		{"a standby that was restarted since", "00000003", 200, 0, false},
		{"the primary that was replaced", "00000001", 200, 0, true},
	} {
		if got := seen.isMissing(serverIdentity{timeline: c.timeline, wal: c.wal, replayed: c.replayed}); got != c.missing {
			t.Errorf("%s: missing %v, want %v", c.what, got, c.missing)
		}
		if (seenWAL{}).isMissing(serverIdentity{timeline: c.timeline, wal: c.wal, replayed: c.replayed}) {
			t.Errorf("%s: a node that has seen nothing misses something", c.what)
		}
	}
}
