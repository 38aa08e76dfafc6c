package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// lockRoom locks a room's row until release is called, so that batches wait.
func (f *fixture) lockRoom(room string) (release func()) {
	f.t.Helper()
	conn := f.connect()
	tx, err := conn.Begin(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), `SELECT FROM rooms WHERE name = $1 FOR UPDATE`, room); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(context.Background()); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) connect() *pgx.Conn {
	f.t.Helper()
	conn, err := pgx.Connect(context.Background(), f.url)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// waitForBlockedBackends waits until that many backends of the log wait for a lock.
func (f *fixture) waitForBlockedBackends(backends int) {
	f.t.Helper()
	testkit.EventuallyNil(f.t, "batches wait for a lock", func() error {
		n := f.pg.Query(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		if n != fmt.Sprint(backends) {
			return fmt.Errorf("%s of %d", n, backends)
		}
		return nil
	})
}

func TestTheSameIDInOverlappingBatchesOfTwoNodes(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	a, b := f.startNode(), f.startNode()
	a.mustPublish("room", "0", "x")
	release := f.lockRoom("room")
	first := a.append("room", "ann", "id", "x")
	f.waitForBlockedBackends(1)
	// The second batch begins, with another message that must leave no hole.
	second, neighbor := b.append("room", "ann", "id", "x"), b.append("room", "ann", "new", "x")
	f.waitForBlockedBackends(2)
	release()
	wait(t, first)
	wait(t, second)
	wait(t, neighbor)
	if first.Err != nil || first.Seq != 2 || first.Duplicate {
		t.Errorf("first %+v", first)
	}
	if second.Err != nil || second.Seq != 2 || !second.Duplicate {
		t.Errorf("second %+v", second)
	}
	if neighbor.Err != nil || neighbor.Seq != 3 {
		t.Errorf("neighbor %+v", neighbor)
	}
	if all := a.readAll("room"); len(all) != 3 {
		t.Errorf("%d are stored", len(all))
	}
}

func TestManyNewRoomsInOppositeOrders(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	a, b := f.openNode(), f.openNode()
	var pubs []*message.Publication
	for i := range 200 {
		// English sorts these names in another order than their bytes.
		names := []string{"a", "B", "_c", "A-", "a.", "Z", "z"}
		pubs = append(pubs,
			a.append(names[i%7]+numbered("", i), "", numbered("a", i), "x"),
			b.append(names[(199-i)%7]+numbered("", 199-i), "", numbered("b", i), "x"))
	}
	a.start()
	b.start()
	for _, p := range pubs {
		if wait(t, p); p.Err != nil {
			t.Fatal(p.Err)
		}
	}
	if got := f.pg.Query(`SELECT count(*), sum(head), max(head) FROM rooms`); got != "200|400|2" {
		t.Errorf("rooms, messages and the highest head: %s", got)
	}
	if got := f.pg.Query(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); got != "0" {
		t.Errorf("%s deadlocks", got)
	}
}

func TestTheFeedSkipsNoCommitThatBeganEarlierAndEndedLater(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("slow", "1", "x")
	n.mustPublish("fast", "1", "x")
	commit := f.beginSlowCommit(2)
	feed := feedReader{n: n, cursor: f.firstCursor()}
	n.mustPublish("fast", "2", "x")
	if got := feed.read(); got != "map[fast:2 slow:1]" {
		t.Errorf("while the slow commit is under way the feed reports %s", got)
	}
	n.mustPublish("fast", "3", "x")
	commit()
	if got := feed.read(); got != "map[fast:3 slow:2]" {
		t.Errorf("after the slow commit the feed reports %s", got)
	}
	if got := feed.read(); got != "map[]" {
		t.Errorf("then the feed reports again %s", got)
	}
}

// A node starts, and takes its first cursor, while a batch of another node is
// under way: it learns of that batch once it commits.
func TestTheFirstCursorSkipsNoCommitUnderWay(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	other := f.startNode()
	other.mustPublish("slow", "1", "x")
	commit := f.beginSlowCommit(2)
	other.mustPublish("fast", "1", "x") // begins later and commits earlier
	feed := feedReader{n: f.startNode()}
	if got := feed.read(); got != "map[]" {
		t.Errorf("with the first cursor the feed reports %s", got)
	}
	commit()
	if got := feed.read(); got != "map[slow:2]" {
		t.Errorf("after the slow commit the feed reports %s", got)
	}
}

// beginSlowCommit begins a batch of another node that raises the head of the
// room slow. It has a transaction id, and ends with commit.
func (f *fixture) beginSlowCommit(head int) (commit func()) {
	f.t.Helper()
	tx, err := f.connect().Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = tx.Exec(f.t.Context(), fmt.Sprintf(`INSERT INTO commits SELECT pg_current_xact_id(), '{slow}', '{%d}', clock_timestamp()`, head))
	if err != nil {
		f.t.Fatal(err)
	}
	return func() {
		f.t.Helper()
		if err := tx.Commit(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
	}
}

// A feedReader reads the commit feed from one cursor to the next.
type feedReader struct {
	n          *node
	cursor     message.Cursor
	incomplete bool // the last read was
}

// read returns the heads since the last call, as fmt prints a map.
func (r *feedReader) read() string {
	r.n.t.Helper()
	c, err := r.n.Commits(r.n.t.Context(), r.cursor)
	if err != nil {
		r.n.t.Fatal(err)
	}
	r.cursor, r.incomplete = c.Next, c.Incomplete
	heads := map[message.Room]message.Seq{}
	for _, h := range c.Heads {
		heads[h.Room] = h.Seq
	}
	return fmt.Sprint(heads)
}

// All three settings can be turned off while a server runs.
func TestServersWithoutDurableCommitsAreRefused(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.StartPostgres(t))
	set := func(setting, value string) {
		t.Helper()
		f.pg.Exec("ALTER SYSTEM SET "+setting+" = "+value, "SELECT pg_reload_conf()")
		testkit.Eventually(t, setting+" = "+value, func() bool { return f.pg.Query("SHOW "+setting) == value })
	}
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		set(setting, "off")
		_, err := f.openLog()
		if err == nil || !strings.Contains(err.Error(), setting+" = on") || !strings.Contains(err.Error(), "DATABASE_URL") {
			t.Errorf("open with %s off: %v", setting, err)
		}
		set(setting, "on")
	}
	f.startNode().mustPublish("room", "1", "x")
}

func TestSynchronousCommitOfAWriter(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	for configured, want := range map[string]string{"local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply"} {
		f.pg.Exec("ALTER DATABASE " + f.pg.Database() + " SET synchronous_commit = " + configured)
		n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
		var got string
		writer := n.logUnderTest.(*Postgres).workers[0].writer.(*pgWriter)
		n.close() // the append worker has ended and closed its connection
		if err := writer.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := writer.conn.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&got); err != nil || got != want {
			t.Errorf("configured %s, used %s, want %s (%v)", configured, got, want, err)
		}
		writer.close()
	}
}

func TestUnusableURLsAreRefused(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://user:secret@[/":                             "must look like",
		"postgres://user:secret@127.0.0.1:1/db?sslmode=disable": "refused",
	} {
		_, err := OpenPostgres(t.Context(), Config{URL: url})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
	_, err := OpenPostgres(t.Context(), Config{URL: "postgres:///", MaxConns: 3, AppendWorkers: 2})
	if err == nil || !strings.Contains(err.Error(), "DATABASE_MAX_CONNS") {
		t.Errorf("too few connections: %v", err)
	}
}

func TestMigrationsOfSeveralNodesAtOnce(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	errs := make(chan error)
	for range 4 {
		go func() { errs <- Migrate(t.Context(), pg.URL()) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	(&fixture{t: t, url: pg.URL(), pg: pg}).startNode().mustPublish("room", "1", "x")
}

// Right after the migration all tables are empty, and the planner would prefer
// to read them whole. Such a plan, if kept, would be disastrous a day later.
func TestNoPlanReadsAWholeTable(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	p := f.openNode().logUnderTest.(*Postgres)
	conn, err := p.repair.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	empty := []string{}
	for name, q := range map[string]struct {
		sql  string
		args []any
	}{
		"create":     {sqlCreateRooms, []any{empty}},
		"lock":       {sqlLockRooms, []any{empty}},
		"locked":     {sqlFindLockedRooms, []any{empty}},
		"append":     {sqlAppend, []any{empty, empty, empty, [][]byte{}, [][]byte{}, "", 0}},
		"read up":    {sqlPageUp, []any{"room", 0, 10, 100}},
		"read down":  {sqlPageDown, []any{"room", 5, 10, 100}},
		"commits":    {sqlCommits, []any{"5:9:5,7", 4, "", 100}},
		"list rooms": {sqlListRooms, []any{"", "a", "b", "c", "d", 10}},
		"heads":      {sqlHeads, []any{empty}},
		"walked":     {sqlWalked, []any{time.Minute}},
		"due":        {sqlDue, []any{5, 100, 10, time.Now()}},
		"walk":       {sqlWalk, []any{5}},
		"trim":       {sqlTrim, []any{"room", 10, time.Now(), 100}},
		"prune feed": {sqlPruneCommits, []any{time.Now(), 100}},
		"prune late": {sqlPruneLateCommits, []any{"5:9:5,7", 100, ""}},
		"prune ids":  {sqlPruneIDs, []any{time.Now(), 100}},
	} {
		rows, err := conn.Query(t.Context(), "EXPLAIN (COSTS OFF) "+q.sql, q.args...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, line := range lines {
			// These tables have one row.
			if strings.Contains(line, "Seq Scan on") && !strings.Contains(line, "Seq Scan on meta") && !strings.Contains(line, "Seq Scan on retention") {
				t.Errorf("%s: %s\n%s", name, strings.TrimSpace(line), strings.Join(lines, "\n"))
			}
			if strings.Contains(line, "Hash Join") || strings.Contains(line, "Merge Join") || strings.Contains(line, "Join Filter") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if plan := strings.Join(lines, "\n"); name == "list rooms" && strings.Count(plan, "Index Cond: ((name > ") != 2 {
			t.Errorf("the list of rooms does not use after as an index condition:\n%s", plan)
		}
		if plan := strings.Join(lines, "\n"); name == "append" &&
			!strings.Contains(plan, "Index Cond: ((room_id = r.id) AND (sender = i.sender) AND (id = i.id))") {
			t.Errorf("the lookup of ids does not use the whole key:\n%s", plan)
		}
	}
}

func TestConnectionsAreRenewed(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.ConnLifetime = 1, time.Millisecond })
	pids := func() string {
		return f.pg.Query(`SELECT string_agg(pid::text, ',') FROM pg_stat_activity
			WHERE application_name = 'switchyard' AND datname = current_database()`)
	}
	before := pids()
	testkit.EventuallyNil(t, "the writer has another connection", func() error {
		n.publish("room", "", "id", "x")
		if pids() == before {
			return errors.New(before)
		}
		return nil
	})
}

func TestANodeStaysWithinItsConnectionLimit(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.MaxConns = 2, 6 })
	errs := make(chan error)
	for i := range 50 {
		go func() {
			n.publish(numbered("room", i), "", "id", "x")
			_, err := n.Read(t.Context(), message.Range{Room: "room-1", Limit: 5, MaxBytes: 100})
			_, err2 := n.Commits(t.Context(), f.firstCursor())
			errs <- errors.Join(err, err2)
		}()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got := f.pg.Query(`SELECT count(*) <= 6 FROM pg_stat_activity WHERE application_name = 'switchyard' AND datname = current_database()`)
	if got != "t" {
		t.Error("more than 6 connections are open")
	}
}
