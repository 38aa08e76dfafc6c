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

// lockRoom locks a room's row until release is called: batches wait for it.
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

// waitForBlockedBackends waits until so many backends of the log wait for a lock.
func (f *fixture) waitForBlockedBackends(backends int) {
	f.t.Helper()
	eventually(f.t, "batches wait for a lock", func() error {
		n := f.pg.Query(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		if n != fmt.Sprint(backends) {
			return fmt.Errorf("%s of %d", n, backends)
		}
		return nil
	})
}

func TestTheSameIDInOverlappingBatchesOfTwoNodes(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	a, b := f.startNode(), f.startNode()
	a.mustPublish("room", "0", "x")
	release := f.lockRoom("room")
	first := a.append("room", "ann", "id", "x")
	f.waitForBlockedBackends(1)
	// Both batches have begun, each with a neighbour that must leave no hole.
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
		t.Errorf("neighbour %+v", neighbor)
	}
	if all := a.readAll("room"); len(all) != 3 {
		t.Errorf("%d are stored", len(all))
	}
}

func TestManyNewRoomsInOppositeOrders(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	a, b := f.openNode(), f.openNode()
	var pubs []*message.Publication
	for i := range 200 {
		// Names that a language sorts otherwise than bytes do.
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
		t.Errorf("rooms, messages, most in a room: %s", got)
	}
	if got := f.pg.Query(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); got != "0" {
		t.Errorf("%s deadlocks", got)
	}
}

func TestAWriterDisconnectedMidBatchLosesAndDuplicatesNothing(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
	n.mustPublish("room", "first", "x")
	var pubs []*message.Publication
	for round := range 3 {
		release := f.lockRoom("room")
		for i := range 50 {
			pubs = append(pubs, n.append("room", "", numbered(numbered("id", round), i), "x"))
		}
		f.waitForBlockedBackends(1)
		f.pg.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		release()
		for _, p := range pubs {
			wait(t, p)
		}
	}
	for i, p := range pubs {
		if p.Err != nil || p.Seq != message.Seq(i+2) {
			t.Fatalf("%d: %+v", i, p)
		}
	}
	if all := n.readAll("room"); len(all) != 151 {
		t.Errorf("%d are stored, want 151", len(all))
	}
}

// When the connection dies after COMMIT was sent and before it was answered,
// the batch is tried again and finds itself.
func TestALostAnswerToCommit(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	lose := f.interceptCommits()
	n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
	n.mustPublish("room", "first", "x")
	lost := lose("room")
	p := n.mustPublish("room", "id", "x")
	requireFault(t, lost)
	if p.Seq != 2 || !p.Duplicate {
		t.Errorf("%+v", p)
	}
	if all := n.readAll("room"); len(all) != 2 {
		t.Errorf("%d are stored, want 2", len(all))
	}
}

func TestTheFeedSkipsNoCommitThatBeganEarlierAndEndedLater(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("slow", "1", "x")
	n.mustPublish("fast", "1", "x")
	// A batch of another node, under way: it has its transaction id already.
	slow, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = slow.Exec(t.Context(), `INSERT INTO commits SELECT pg_current_xact_id(), '{slow}', '{2}', clock_timestamp()`)
	if err != nil {
		t.Fatal(err)
	}
	cursor := message.Cursor(1)
	read := func() string {
		c, err := n.Commits(t.Context(), cursor)
		if err != nil {
			t.Fatal(err)
		}
		cursor = c.Next
		heads := map[message.Room]message.Seq{}
		for _, h := range c.Heads {
			heads[h.Room] = h.Seq
		}
		return fmt.Sprint(heads)
	}
	n.mustPublish("fast", "2", "x")
	if got := read(); got != "map[fast:2 slow:1]" {
		t.Errorf("while the slow one is under way the feed tells %s", got)
	}
	n.mustPublish("fast", "3", "x")
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "map[fast:3 slow:2]" {
		t.Errorf("after the slow one ended the feed tells %s", got)
	}
	if got := read(); got != "map[]" {
		t.Errorf("then it tells %s", got)
	}
}

func TestTheDatabaseStopsAndComesBack(t *testing.T) {
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	acked := n.mustPublish("room", "acked", "x")
	pg.Kill()
	began := time.Now()
	if p := n.publish("room", "ann", "while away", "x"); !errors.Is(p.Err, message.ErrUnavailable) {
		t.Errorf("while the database is away: %v", p.Err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the answer took %v, the bound is 1.2 s", took)
	}
	if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); err == nil {
		t.Error("a dead database can be read")
	}
	eventually(t, "Check speaks", func() error {
		if n.Check() == nil {
			return errors.New("it says all is well")
		}
		return nil
	})
	pg.Start()
	var p *message.Publication
	eventually(t, "the log comes back by itself", func() error {
		p = n.publish("room", "ann", "after", "x")
		return p.Err
	})
	if p.Epoch != acked.Epoch {
		t.Error("a crash alone began a new epoch")
	}
	if all := n.readAll("room"); all[0].ID != "acked" || all[len(all)-1].ID != "after" {
		t.Errorf("stored are %v", all)
	}
	eventually(t, "all lanes have come back", n.Check)
}

func TestServersWithoutDurableCommitsAreRefused(t *testing.T) {
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		t.Run(setting, func(t *testing.T) {
			f := &fixture{t: t, pg: testkit.StartPostgres(t, setting+"=off")}
			f.url = f.pg.URL()
			f.migrate()
			_, err := f.openLog()
			if err == nil || !strings.Contains(err.Error(), setting+" = on") || !strings.Contains(err.Error(), "DATABASE_URL") {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestSynchronousCommitOfAWriter(t *testing.T) {
	for configured, want := range map[string]string{"local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply"} {
		f := newPostgresFixture(t, testkit.Postgres(t))
		f.pg.Exec("ALTER DATABASE " + f.pg.Database() + " SET synchronous_commit = " + configured)
		n := f.startNode(func(c *Config) { c.AppendWorkers = 1 })
		var got string
		writer := n.logUnderTest.(*Postgres).workers[0].writer.(*pgWriter)
		n.close() // the lane is done with the connection, which close has closed
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
		"postgres://user:secret@[/":                             "looks like",
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

// Right after the migration all tables are empty, and the planner would find
// reading them whole the cheapest. Such a plan, kept, is ruin a day later.
func TestNoPlanReadsAWholeTable(t *testing.T) {
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
		"make":       {sqlCreateRooms, []any{empty}},
		"lock":       {sqlLockRooms, []any{empty}},
		"held":       {sqlFindLockedRooms, []any{empty}},
		"append":     {sqlAppend, []any{empty, empty, empty, [][]byte{}, [][]byte{}, ""}},
		"read up":    {sqlPageUp, []any{"room", 0, 10, 100}},
		"read down":  {sqlPageDown, []any{"room", 5, 10, 100}},
		"commits":    {sqlCommits, []any{5, 100}},
		"list rooms": {sqlListRooms, []any{"", "a", "b", "c", "d", 10}},
		"heads":      {sqlHeads, []any{empty}},
		"walked":     {sqlWalked, []any{time.Minute}},
		"due":        {sqlDue, []any{5, 100, 10, time.Minute}},
		"walk":       {sqlWalk, []any{5}},
		"trim":       {sqlTrim, []any{"room", 10, time.Minute, 100}},
		"prune feed": {sqlPruneCommits, []any{time.Minute, 100}},
		"prune ids":  {sqlPruneIDs, []any{time.Minute, 100}},
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
			// These have one row, and no index could be cheaper.
			if strings.Contains(line, "Seq Scan on") && !strings.Contains(line, "Seq Scan on meta") && !strings.Contains(line, "Seq Scan on retention") {
				t.Errorf("%s: %s\n%s", name, strings.TrimSpace(line), strings.Join(lines, "\n"))
			}
			if strings.Contains(line, "Hash Join") || strings.Contains(line, "Merge Join") || strings.Contains(line, "Join Filter") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if plan := strings.Join(lines, "\n"); name == "list rooms" && strings.Count(plan, "Index Cond: ((name > ") != 2 {
			t.Errorf("a list of rooms does not begin where it should:\n%s", plan)
		}
		if plan := strings.Join(lines, "\n"); name == "append" &&
			!strings.Contains(plan, "Index Cond: ((room_id = r.id) AND (sender = i.sender) AND (id = i.id))") {
			t.Errorf("ids are not looked up by the whole key:\n%s", plan)
		}
	}
}

func TestConnectionsAreRenewed(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.ConnLifetime = 1, time.Millisecond })
	pids := func() string {
		return f.pg.Query(`SELECT string_agg(pid::text, ',') FROM pg_stat_activity
			WHERE application_name = 'switchyard' AND datname = current_database()`)
	}
	before := pids()
	eventually(t, "the writer has another connection", func() error {
		n.publish("room", "", "id", "x")
		if pids() == before {
			return errors.New(before)
		}
		return nil
	})
}

func TestANodeStaysWithinItsConnectionLimit(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.MaxConns = 2, 6 })
	errs := make(chan error)
	for i := range 50 {
		go func() {
			n.publish(numbered("room", i), "", "id", "x")
			_, err := n.Read(t.Context(), message.Range{Room: "room-1", Limit: 5, MaxBytes: 100})
			_, err2 := n.Commits(t.Context(), 1)
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
