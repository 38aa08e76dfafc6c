package store

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// beginElsewhere begins a transaction with an id in another database of the server.
func (f *fixture) beginElsewhere(database string) pgx.Tx {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), f.pg.URLOf(database))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close(f.t.Context()) })
	tx, err := conn.Begin(f.t.Context())
	if err == nil {
		_, err = tx.Exec(f.t.Context(), `SELECT pg_current_xact_id()`)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return tx
}

func mustExec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// insertFeedRows inserts the rows of that many batches, each of a room of its own,
// evenly over the last minutes. Their transaction ids are given out before.
func (f *fixture) insertFeedRows(rows, minutes int) {
	f.t.Helper()
	f.pg.Exec(fmt.Sprintf(`
		CREATE TEMPORARY TABLE burned (i int);
		DO $$ BEGIN
			FOR i IN 1..%[1]d LOOP
				BEGIN
					INSERT INTO burned VALUES (i); -- gives this subtransaction an id
				EXCEPTION WHEN division_by_zero THEN END;
			END LOOP;
		END $$;
		INSERT INTO commits
		SELECT (pg_current_xact_id()::text::bigint + i)::text::xid8, ARRAY['fed-' || pg_current_xact_id()::text || '-' || i], '{1}',
			clock_timestamp() - interval '%[2]d minutes' * (%[1]d - i) / %[1]d
		FROM burned`, rows, minutes))
}

// A feedRead is what a read of the feed returned, and what it cost.
type feedRead struct {
	heads      int
	incomplete bool
	pages      int
}

// readAndCount reads the feed from a cursor, and counts the pages that the statement
// touches.
func (n *node) readAndCount(cursor *message.Cursor) (r feedRead) {
	n.t.Helper()
	from, err := decodeFeedCursor(*cursor)
	if err != nil {
		n.t.Fatal(err)
	}
	var plan []byte
	err = n.logUnderTest.(*Postgres).repair.QueryRow(n.t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+sqlCommits,
		from.snapshot, from.floor, from.origin, feedRooms+1).Scan(&plan)
	if err != nil {
		n.t.Fatal(err)
	}
	var explained []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal(plan, &explained); err != nil {
		n.t.Fatal(err)
	}
	c, err := n.Commits(n.t.Context(), *cursor)
	if err != nil {
		n.t.Fatal(err)
	}
	*cursor = c.Next
	return feedRead{heads: len(c.Heads), incomplete: c.Incomplete, pages: explained[0].Plan.Hit + explained[0].Plan.Read}
}

func (n *node) mustPrune() {
	n.t.Helper()
	if err := n.prune(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// letPassedGrowOld lets feedRetention pass for the snapshot of the last prune.
func (n *node) letPassedGrowOld() {
	p := n.logUnderTest.(*Postgres)
	p.pruning.Lock()
	defer p.pruning.Unlock()
	p.passed.at = p.passed.at.Add(-feedRetention)
}

// A backup of another database of the server runs for half an hour, and somebody has
// forgotten prepared transactions. Members on other nodes do not notice: a read of
// the feed returns what is new, and costs no more than before, whatever was
// committed since.
func TestAnOldTransactionOfTheServerCostsTheFeedNothing(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.StartPostgres(t, "max_prepared_transactions=100"))
	f.pg.Exec("CREATE DATABASE elsewhere")
	n := f.startNode()
	cursor := n.currentCursor()
	check := func(when string, pages int) feedRead {
		t.Helper()
		n.mustPublish("room", when, "x")
		r := n.readAndCount(&cursor)
		if r.heads != 1 || r.incomplete || pages > 0 && r.pages > pages {
			t.Errorf("%s: %+v, want one room and at most %d pages", when, r, pages)
		}
		return r
	}
	f.insertFeedRows(500, 1)
	n.readAndCount(&cursor)
	pages := check("undisturbed", 0).pages + 4 // the tree may have grown by a level

	old := f.beginElsewhere("elsewhere")
	const forgotten = 60
	elsewhere := f.beginElsewhere("elsewhere").Conn()
	for i := range forgotten {
		mustExec(t, elsewhere, fmt.Sprintf(`PREPARE TRANSACTION 'forgotten %d'`, i), `BEGIN`, `SELECT pg_current_xact_id()`)
	}
	mustExec(t, elsewhere, `ROLLBACK`)
	check("begun", pages)
	f.insertFeedRows(20_000, 30)
	if r := n.readAndCount(&cursor); r.heads != 20_000 || r.incomplete {
		t.Errorf("the rows of half an hour: %+v", r)
	}
	check("after half an hour", pages)
	n.mustPrune()
	check("after pruning", pages)

	if err := old.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after its end", pages+10) // one more row is looked up, in two places
	for i := range forgotten {
		mustExec(t, elsewhere, fmt.Sprintf(`ROLLBACK PREPARED 'forgotten %d'`, i))
	}
	check("after the forgotten ones", pages+10*forgotten)
	check("at last", pages)
}

// A database is restored, or moved, while a transaction of another database of the
// server is open: the new epoch's feed is complete from its first cursor on.
func TestANewEpochBesideAnOldTransactionLosesNoCursor(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	other := newPostgresFixture(t, testkit.Postgres(t))
	old := other.beginElsewhere(other.pg.Database())
	n := newPostgresFixture(t, pg).startNode() // its first epoch begins now
	feed := feedReader{n: n, cursor: n.currentCursor()}
	n.mustPublish("room", "1", "x")
	if got := feed.read(); got != "map[room:1]" || feed.incomplete {
		t.Errorf("while the transaction is open: %s, incomplete %v", got, feed.incomplete)
	}
	if err := old.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.mustPublish("room", "2", "x")
	if got := feed.read(); got != "map[room:2]" || feed.incomplete {
		t.Errorf("after it has ended: %s, incomplete %v", got, feed.incomplete)
	}
}

// A commit hangs, because the standby does not confirm it, until pruning has passed
// it; and then it is pruned before a node has read it. The node reads that something is missing.
func TestALateCommitThatWasPrunedIsReportedAsLost(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.StartPostgres(t))
	n := f.startNode()
	commit := f.beginSlowCommit(1)
	n.mustPublish("fast", "1", "x")
	f.pg.Exec(`UPDATE commits SET at = at - interval '11 min'`)
	n.mustPrune()
	feed := feedReader{n: n, cursor: n.currentCursor()}
	n.mustPublish("fast", "2", "x")
	if got := feed.read(); got != "map[fast:2]" || feed.incomplete {
		t.Errorf("before the commit: %s, incomplete %v", got, feed.incomplete)
	}
	commit()
	f.pg.Exec(`UPDATE commits SET at = at - interval '11 min'`)
	n.letPassedGrowOld()
	n.mustPrune() // it was not visible then
	n.mustPrune() // and has not been visible for long now
	another := feed
	if got := another.read(); got != "map[slow:1]" || another.incomplete {
		t.Errorf("after the late commit: %s, incomplete %v", got, another.incomplete)
	}
	n.letPassedGrowOld()
	n.mustPrune()
	if got := feed.read(); got != "map[]" || !feed.incomplete {
		t.Errorf("after the late commit was pruned: %s, incomplete %v", got, feed.incomplete)
	}
	n.mustPublish("fast", "3", "x")
	if got := feed.read(); got != "map[fast:3]" || feed.incomplete {
		t.Errorf("afterwards: %s, incomplete %v", got, feed.incomplete)
	}
}
