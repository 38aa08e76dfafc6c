package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
)

func TestTimeNeverRunsBackwards(t *testing.T) {
	ahead := map[bool]string{
		true:  `UPDATE rooms SET last_at = last_at + interval '1 hour'`,
		false: `UPDATE rooms SET last_at = last_at + 3600e6`,
	}
	inEachWorld(t, func(t *testing.T, w *world) {
		n := w.node()
		first := n.stored("room", "1", "x")
		if since := time.Since(first.At); since > time.Minute || since < -time.Minute {
			t.Errorf("stored at %v", first.At)
		}
		w.exec(ahead[w.pg != nil]) // as if the clock had been set back by an hour
		second, third := n.stored("room", "2", "x"), n.stored("room", "3", "x")
		if want := first.At.Add(time.Hour); !second.At.Equal(want) || !third.At.Equal(want) {
			t.Errorf("after %v come %v and %v", want, second.At, third.At)
		}
	})
}

func TestTooMuchWaiting(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		n := w.idle(func(c *Config) { c.MaxPending, c.MaxPendingBytes = 5, 100 })
		var refused sync.WaitGroup
		refused.Add(1)
		// Started by hand: nothing is committed while the bound is tried.
		lanes := lanesOf(n.theLog)
		for _, l := range lanes {
			l.settled = func(pubs []*message.Publication) { n.settled(pubs); refused.Done() }
		}
		var pubs []*message.Publication
		for i := range 5 {
			pubs = append(pubs, n.append("room", "", numbered("id", i), "x"))
		}
		sixth := n.append("room", "", "sixth", "x")
		refused.Wait()
		if wait(t, sixth); !errors.Is(sixth.Err, message.ErrUnavailable) {
			t.Errorf("beyond the bound: %v", sixth.Err)
		}
		n.start()
		for _, p := range pubs {
			if wait(t, p); p.Err != nil {
				t.Errorf("within the bound: %v", p.Err)
			}
		}
		if p := n.publish("room", "", "big", strings.Repeat("x", 101)); !errors.Is(p.Err, message.ErrUnavailable) {
			t.Errorf("beyond the bound in bytes: %v", p.Err)
		}
		n.stored("room", "after", "x")
	})
}

func lanesOf(l theLog) []*lane {
	if p, ok := l.(*Postgres); ok {
		return p.lanes
	}
	return l.(*SQLite).lanes
}

func TestCloseFinishesWhatWaits(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		n := w.node()
		var pubs []*message.Publication
		for i := range 1000 {
			pubs = append(pubs, n.append(numbered("room", i%7), "", numbered("id", i), "x"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Fatal(err)
		}
		for _, p := range pubs {
			select {
			case <-p.Owner.(chan struct{}):
			default:
				t.Fatalf("%s was not settled by Close", p.ID)
			}
			if p.Err != nil {
				t.Fatal(p.Err)
			}
		}
		if p := n.publish("room", "", "late", "x"); !errors.Is(p.Err, message.ErrClosed) {
			t.Errorf("after Close: %v", p.Err)
		}
		if _, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 1}); !errors.Is(err, message.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if len(w.node().all("room-0")) != 143 {
			t.Error("what was settled is not there after a restart")
		}
	})
}

func TestARestartKeepsTheEpoch(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		n := w.node()
		before := n.stored("room", "1", "x")
		n.close()
		w.migrate() // once more, as each start does
		if after := w.node().stored("room", "2", "x"); after.Epoch != before.Epoch || after.Seq != 2 || len(after.Epoch) != 16 {
			t.Errorf("before %+v, after %+v", before, after)
		}
	})
}

func TestSchemaThatIsMissing(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		w.exec(`DROP TABLE goose_db_version`)
		_, err := w.open()
		if err == nil || !strings.Contains(err.Error(), "DATABASE_URL") || !strings.Contains(err.Error(), "migrate") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("open: %v", err)
		}
	})
}

func TestANewerSchemaIsFine(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		w.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)`)
		w.migrate()
		w.node().stored("room", "1", "x")
	})
}
