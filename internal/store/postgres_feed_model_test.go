package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A feedModel is what readers of the feed must learn. Each batch has a room of its
// own, so that none hides another.
type feedModel struct {
	t       *testing.T
	f       *fixture
	r       *rand.Rand
	n       *node
	old     *pgx.Conn // reads as the release before does
	running []*modelTx
	batches []*modelBatch
	readers []*modelReader
	counts  map[string]int // of what happened
}

// A modelTx is a transaction under way.
type modelTx struct {
	conn     *pgx.Conn
	prepared string // its name
	batch    *modelBatch
}

// A modelBatch is a row of the feed.
type modelBatch struct {
	room      message.Room
	committed bool
	pruned    bool
}

// A modelReader is a node that reads the feed.
type modelReader struct {
	cursor message.Cursor
	before bool  // it is of the release before: xmin is its cursor
	xmin   int64 // its cursor then
	known  map[message.Room]bool
	// Since its last read a transaction without a row has ended, and rows were
	// pruned, late ones among them: it may compare heads in vain.
	endedWithoutRow, pruned, prunedLate bool
}

// Transactions begin, also in another database, commit, roll back, are prepared and
// forgotten; rows grow old and are pruned; nodes read, often or rarely, one of them
// of the release before. Each gets each batch, once, or learns that it may lack one,
// and then it does.
func TestReadersOfTheFeedLackNothing(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	f := newPostgresFixture(t, testkit.StartPostgres(t, "max_prepared_transactions=20"))
	f.pg.Exec("CREATE DATABASE elsewhere", "CREATE TABLE burned (i int)")
	m := &feedModel{t: t, f: f, r: rand.New(rand.NewPCG(seed, 0)), n: f.startNode(), old: f.connect(), counts: map[string]int{}}
	for i := range 3 {
		m.readers = append(m.readers, &modelReader{before: i == 2, known: map[message.Room]bool{}})
		m.read(m.readers[i])
	}
	steps := []struct {
		weight int
		do     func()
	}{
		{30, m.begin}, {25, m.end}, {5, m.prepare}, {40, func() { m.read(m.readers[m.r.IntN(3)]) }}, {8, m.prune},
	}
	for range 300 {
		at := m.r.IntN(108)
		for _, s := range steps {
			if at -= s.weight; at < 0 {
				s.do()
				break
			}
		}
	}
	for len(m.running) > 0 {
		m.end()
	}
	for _, r := range m.readers {
		m.read(r)
		for _, b := range m.batches {
			if b.committed && !r.known[b.room] {
				t.Errorf("at the end a reader lacks %s", b.room)
			}
		}
	}
	t.Log(m.counts)
	for _, what := range []string{"committed", "rolled back", "elsewhere", "prepared", "reported", "pruned", "reported as lost"} {
		if m.counts[what] == 0 {
			t.Errorf("the run has nothing that was %s", what)
		}
	}
}

// begin begins a transaction, three of four with a row of the feed, some of these in
// one of many subtransactions.
func (m *feedModel) begin() {
	if len(m.running) == 12 {
		return
	}
	tx := &modelTx{}
	if m.r.IntN(4) == 0 {
		tx.conn = m.f.beginElsewhere("elsewhere").Conn()
		m.counts["elsewhere"]++
	} else {
		tx.conn = m.f.connect()
		// A snapshot holds 64 subtransactions of a transaction.
		mustExec(m.t, tx.conn, `BEGIN;`+strings.Repeat(`SAVEPOINT s; INSERT INTO burned VALUES (1);`, m.r.IntN(3)*40))
		tx.batch = &modelBatch{room: message.Room(numbered("room", len(m.batches)))}
		m.batches = append(m.batches, tx.batch)
		mustExec(m.t, tx.conn, fmt.Sprintf(`INSERT INTO commits SELECT pg_current_xact_id(), '{%s}', '{1}', clock_timestamp()`, tx.batch.room))
	}
	m.running = append(m.running, tx)
}

// prepare prepares a transaction. It is then under way without a connection.
func (m *feedModel) prepare() {
	i := slices.IndexFunc(m.running, func(tx *modelTx) bool { return tx.prepared == "" })
	if i < 0 {
		return
	}
	tx := m.running[i]
	m.counts["prepared"]++
	tx.prepared = numbered("prepared", m.counts["prepared"])
	mustExec(m.t, tx.conn, fmt.Sprintf(`PREPARE TRANSACTION '%s'`, tx.prepared))
}

// end ends any transaction: the young and the old are equally likely.
func (m *feedModel) end() {
	if len(m.running) == 0 {
		return
	}
	i := m.r.IntN(len(m.running))
	tx := m.running[i]
	m.running = slices.Delete(m.running, i, i+1)
	how := []string{"COMMIT", "COMMIT", "ROLLBACK"}[m.r.IntN(3)]
	if tx.prepared != "" {
		mustExec(m.t, tx.conn, fmt.Sprintf(`%s PREPARED '%s'`, how, tx.prepared))
	} else {
		mustExec(m.t, tx.conn, how)
	}
	if err := tx.conn.Close(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	if tx.batch != nil && how == "COMMIT" {
		tx.batch.committed = true
		m.counts["committed"]++
		return
	}
	m.counts["rolled back"]++
	for _, r := range m.readers {
		r.endedWithoutRow = true
	}
}

// prune prunes what was committed so far, or the older half of it.
func (m *feedModel) prune() {
	floor := m.f.pg.Query(`SELECT feed_floor FROM meta`)
	m.f.pg.Exec(fmt.Sprintf(`UPDATE commits SET at = at - interval '11 min' WHERE xid IN (
		SELECT xid FROM commits ORDER BY xid LIMIT (SELECT count(*) / %d FROM commits))`, 1+m.r.IntN(2)))
	if m.r.IntN(2) == 0 {
		m.n.letPassedGrowOld()
	}
	late := m.f.pg.Query(fmt.Sprintf(`SELECT count(*) FROM commits WHERE xid < '%s'::xid8`, floor)) != "0"
	m.n.mustPrune()
	pruned := false
	left := strings.Split(m.f.pg.Query(`SELECT rooms[1] FROM commits`), "\n")
	for _, b := range m.batches {
		if b.committed && !b.pruned && !slices.Contains(left, string(b.room)) {
			b.pruned, pruned = true, true
			m.counts["pruned"]++
		}
	}
	for _, r := range m.readers {
		r.pruned, r.prunedLate = r.pruned || pruned, r.prunedLate || late
	}
}

// read reads the feed, and checks what it returns against what the reader lacks.
func (m *feedModel) read(r *modelReader) {
	first := r.cursor == "" && r.xmin == 0
	c := m.readFeed(r)
	lacks, lost := map[message.Room]bool{}, false
	for _, b := range m.batches {
		if b.committed && !r.known[b.room] {
			lacks[b.room] = !b.pruned
			lost = lost || b.pruned
		}
	}
	for _, h := range c.Heads {
		if reported := lacks[h.Room]; !reported && !r.before {
			m.t.Fatalf("a reader got %s, which it knew, or which was not committed", h.Room)
		}
		m.counts["reported"]++
		delete(lacks, h.Room)
		r.known[h.Room] = true
	}
	for room, isInFeed := range lacks {
		if isInFeed && !first {
			m.t.Fatalf("a reader did not get %s", room)
		}
		r.known[room] = true // it compares heads now, or must learn that it has to
	}
	inVain := r.before || r.pruned && r.endedWithoutRow || r.prunedLate
	switch {
	case first:
	case lost && !c.Incomplete:
		m.t.Fatalf("a reader did not learn that it lacks %v", lacks)
	case lost:
		m.counts["reported as lost"]++
	case c.Incomplete && !inVain:
		m.t.Fatalf("a read says that the reader may lack something, and lacks nothing")
	case c.Incomplete:
		m.counts["incomplete in vain"]++
	}
	r.endedWithoutRow, r.pruned, r.prunedLate = false, false, false
}

// readFeed reads the feed as a node of this release or of the one before.
func (m *feedModel) readFeed(r *modelReader) (c message.Commits) {
	var err error
	if !r.before {
		c, err = m.n.Commits(m.t.Context(), r.cursor)
		r.cursor = c.Next
	} else {
		var rooms []string
		err = m.old.QueryRow(m.t.Context(), sqlCommitsOfTheReleaseBefore, r.xmin, feedRooms).Scan(&c.Epoch, &r.xmin, &c.Incomplete, &rooms, nil)
		for _, room := range rooms {
			c.Heads = append(c.Heads, message.Head{Room: message.Room(room), Seq: 1})
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// sqlCommitsOfTheReleaseBefore reads the feed with the xmin of the last read as cursor.
const sqlCommitsOfTheReleaseBefore = `
SELECT m.epoch, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
	$1::bigint < m.feed_floor OR $1::bigint > pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
	f.rooms, f.heads
FROM meta m, LATERAL (
	SELECT array_agg(h.room) AS rooms, array_agg(h.head) AS heads FROM (
		SELECT u.room, max(u.head) AS head
		FROM commits c, unnest(c.rooms, c.heads) AS u (room, head)
		WHERE c.xid >= $1::bigint::text::xid8 GROUP BY u.room LIMIT $2
	) h
) f`
