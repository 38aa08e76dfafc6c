package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestTimeNeverRunsBackwards(t *testing.T) {
	ahead := map[bool]string{
		true:  `UPDATE rooms SET last_at = last_at + interval '1 hour'`,
		false: `UPDATE rooms SET last_at = last_at + 3600e6`,
	}
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		first := n.mustPublish("room", "1", "x")
		if since := time.Since(first.At); since > time.Minute || since < -time.Minute {
			t.Errorf("stored at %v", first.At)
		}
		f.exec(ahead[f.pg != nil]) // as if the clock was set back by an hour
		second, third := n.mustPublish("room", "2", "x"), n.mustPublish("room", "3", "x")
		if want := first.At.Add(time.Hour); !second.At.Equal(want) || !third.At.Equal(want) {
			t.Errorf("the next times are %v and %v, want %v", second.At, third.At, want)
		}
	})
}

func TestPendingPublicationsAreBounded(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.openNode(func(c *Config) { c.MaxPending, c.MaxPendingBytes = 5, 100 })
		var refused sync.WaitGroup
		refused.Add(1)
		// Not started yet: nothing is committed while the bound is tested.
		workers := workersOf(n.logUnderTest)
		for _, worker := range workers {
			worker.onCompleted = func(pubs []*message.Publication) { n.completed(pubs); refused.Done() }
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
		n.mustPublish("room", "after", "x")
	})
}

func workersOf(l logUnderTest) []*appendWorker {
	if p, ok := l.(*Postgres); ok {
		return p.workers
	}
	return l.(*SQLite).workers
}

func TestCloseCommitsPendingPublications(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		var pubs []*message.Publication
		for i := range 1000 {
			pubs = append(pubs, n.append(numbered("room", i%7), "", numbered("id", i), "x"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Timeout)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Fatal(err)
		}
		for _, p := range pubs {
			select {
			case <-p.Opaque.(chan struct{}):
			default:
				t.Fatalf("%s was not completed by Close", p.ID)
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
		if len(f.startNode().readAll("room-0")) != 143 {
			t.Error("completed messages are missing after a restart")
		}
	})
}

func TestARestartKeepsTheEpoch(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		before := n.mustPublish("room", "1", "x")
		n.close()
		f.migrate() // again, as each start does
		if after := f.startNode().mustPublish("room", "2", "x"); after.Epoch != before.Epoch || after.Seq != 2 || len(after.Epoch) != 16 {
			t.Errorf("before %+v, after %+v", before, after)
		}
	})
}

func TestAMissingSchemaIsReported(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		f.exec(`DROP TABLE goose_db_version`)
		_, err := f.openLog()
		if err == nil || !strings.Contains(err.Error(), "DATABASE_URL") || !strings.Contains(err.Error(), "migrate") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("open: %v", err)
		}
	})
}

func TestANewerSchemaIsAccepted(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		f.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)`)
		f.migrate()
		f.startNode().mustPublish("room", "1", "x")
	})
}
