package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// The batch's connection is cut three times, while it waits for a room that
// another transaction has locked.
func TestABatchWhoseConnectionIsCutLosesAndDuplicatesNothing(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("locked", "0", "x")
	for round := range 3 {
		release := f.lockRoom("locked")
		answer := make(chan error)
		pubs := publications(fmt.Sprintf("locked %d-a x", round), fmt.Sprintf("room %d-b x", round), fmt.Sprintf("new-%d c x", round))
		go func() { answer <- n.AppendBatch(t.Context(), pubs) }()
		f.waitForBlockedBackends(1)
		f.pg.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		release()
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		if pubs[0].Seq != message.Seq(round+2) || pubs[1].Seq != message.Seq(round+1) || pubs[2].Seq != 1 || pubs[2].Duplicate {
			t.Errorf("round %d: %+v %+v %+v", round, pubs[0], pubs[1], pubs[2])
		}
	}
	if locked, room := n.readAll("locked"), n.readAll("room"); len(locked) != 4 || len(room) != 3 {
		t.Errorf("%d and %d are stored, want 4 and 3", len(locked), len(room))
	}
}

func TestALostAnswerToTheCommitOfABatch(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	lose := f.interceptCommits()
	n := f.startNode()
	n.mustAppendBatch("room 0 x")
	lost := lose("room")
	if got := n.mustAppendBatch("room 1 x", "other 1 x"); got != "room2d other1d" {
		t.Errorf("the answer is %s", got)
	}
	requireFault(t, lost)
	if room, other := n.readAll("room"), n.readAll("other"); len(room) != 2 || len(other) != 1 {
		t.Errorf("%d and %d are stored", len(room), len(other))
	}
}

func TestABatchWhileTheDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	f := newPostgresFixture(t, pg)
	n := f.startNode(func(c *Config) { c.AppendTimeout = time.Second })
	n.mustAppendBatch("room 1 x")
	for what, outage := range map[string]struct{ start, end func() }{
		"hangs": {pg.Pause, pg.Resume}, "is down": {pg.Kill, pg.Start},
	} {
		outage.start()
		// The second batch waits for the first.
		errs := make(chan error)
		for i := range 2 {
			go func() { errs <- n.AppendBatch(t.Context(), publications(fmt.Sprintf("room 2-%d x", i), "other 2 x")) }()
		}
		for range 2 {
			var batch *message.BatchError
			if err := <-errs; !errors.Is(err, message.ErrUnavailable) || errors.As(err, &batch) {
				t.Errorf("while it %s: %v", what, err)
			}
		}
		outage.end()
		testkit.EventuallyNil(t, "the same batch is stored", func() error {
			return n.AppendBatch(t.Context(), publications("room 2-0 x", "other 2 x", "room 2-1 x"))
		})
	}
	if room, other := n.readAll("room"), n.readAll("other"); len(room) != 3 || len(other) != 1 {
		t.Errorf("%d and %d are stored", len(room), len(other))
	}
}

func TestCloseFinishesABatchUnderWay(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	n.mustPublish("room", "0", "x")
	release := f.lockRoom("room")
	answer := make(chan error)
	go func() { answer <- n.AppendBatch(context.Background(), publications("room 1 x", "other 1 x")) }()
	f.waitForBlockedBackends(1)
	closed := make(chan error)
	go func() { closed <- n.Close(context.Background()) }()
	testkit.EventuallyNil(t, "Close has begun", func() error {
		// This batch waits for the first one before, hence the bound.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := n.AppendBatch(ctx, publications("late 1 x")); !errors.Is(err, message.ErrClosed) {
			return fmt.Errorf("late: %w", err)
		}
		return nil
	})
	release()
	if err := errors.Join(<-answer, <-closed); err != nil {
		t.Error(err)
	}
	if all := f.startNode().readAll("room"); len(all) != 2 {
		t.Errorf("%d are stored", len(all))
	}
}
