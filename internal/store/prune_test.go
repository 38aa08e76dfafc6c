package store

import (
	"fmt"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// A publisher that resends within ID_WINDOW gets its first answer, and its
// message is stored once.
func TestIDsAreRememberedForTheWholeWindow(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.IDWindow = time.Hour })
		first := n.mustPublish("room", "id", "x")
		age := func(minutes int) {
			if f.pg != nil {
				f.exec(fmt.Sprintf(`UPDATE message_ids SET at = at - interval '%d min'`, minutes))
			} else {
				f.exec(fmt.Sprintf(`UPDATE message_ids SET at = at - %d * 60e6`, minutes))
			}
			if err := n.prune(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		age(55)
		if p := n.mustPublish("room", "id", "x"); !p.Duplicate || p.Seq != first.Seq {
			t.Errorf("a resend after 55 min of an hour: %+v", p)
		}
		age(6)
		if p := n.mustPublish("room", "id", "x"); p.Duplicate || p.Seq != 2 {
			t.Errorf("a resend after 61 min, when the id is forgotten: %+v", p)
		}
	})
}

func TestOneNodePrunesAtATime(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("room", "old", "x")
	f.pg.Exec(`UPDATE message_ids SET at = at - interval '1 hour'`)
	left := func() string { return f.pg.Query(`SELECT count(*) FROM message_ids`) }
	other, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, pruneLock); err != nil {
		t.Fatal(err)
	}
	if err := n.prune(t.Context()); err != nil || left() != "1" {
		t.Errorf("while another node prunes: %s left, %v", left(), err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.prune(t.Context()); err != nil || left() != "0" {
		t.Errorf("afterwards: %s left, %v", left(), err)
	}
}

func TestPruningGoesInSmallSteps(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	f.pg.Exec(fmt.Sprintf(`INSERT INTO message_ids SELECT 1, '', g::text, g, now() - interval '1 hour', '' FROM generate_series(1, %d) g`, 2*pruneRows+7),
		fmt.Sprintf(`INSERT INTO commits SELECT (feed_floor + g)::text::xid8, '{}', '{}', now() - interval '1 hour' FROM meta, generate_series(1, %d) g`, pruneRows+7))
	floor := f.pg.Query(`SELECT feed_floor FROM meta`)
	if err := n.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := f.pg.Query(fmt.Sprintf(`SELECT (SELECT count(*) FROM message_ids), (SELECT count(*) FROM commits), feed_floor - %s FROM meta`, floor))
	if want := fmt.Sprintf("0|0|%d", pruneRows+8); got != want {
		t.Errorf("ids, commits and the growth of the floor: %s, want %s", got, want)
	}
}

func TestAPrunedFeedReportsLostCursors(t *testing.T) {
	old := map[bool]string{
		true:  `UPDATE commits SET at = at - interval '11 min'; UPDATE message_ids SET at = at - interval '11 min'`,
		false: `UPDATE commits SET at = at - 660e6; UPDATE message_ids SET at = at - 660e6`,
	}
	forEachDialectAlone(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		start, err := n.Commits(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		n.mustPublish("room", "old", "x")
		f.exec(old[f.pg != nil])
		n.mustPublish("room", "young", "x")
		middle := n.currentCursor()
		n.mustPublish("room", "youngest", "x")
		if err := n.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c, err := n.Commits(t.Context(), start.Next); err != nil || !c.Incomplete {
			t.Errorf("from before the pruned commit: %+v, %v", c, err)
		}
		if c, err := n.Commits(t.Context(), middle); err != nil || c.Incomplete || len(c.Heads) != 1 || c.Heads[0].Seq != 3 {
			t.Errorf("from after the pruned commit: %+v, %v", c, err)
		}
		if p := n.mustPublish("room", "young", "x"); !p.Duplicate {
			t.Error("an id was forgotten within its window")
		}
		if p := n.mustPublish("room", "old", "x"); p.Duplicate || p.Seq != 4 {
			t.Errorf("an id was kept beyond its window: %+v", p)
		}
	})
}
