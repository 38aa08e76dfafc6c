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

// A backend is killed while its batch waits for a room that another one holds,
// each time behind another number of statements.
func TestABatchWhoseConnectionIsCutLosesAndDoublesNothing(t *testing.T) {
	w := postgresWorld(t, testkit.Postgres(t))
	n := w.node()
	n.stored("held", "0", "x")
	for round := range 3 {
		release := w.holdRoom("held")
		answer := make(chan error)
		pubs := drafted(fmt.Sprintf("held %d-a x", round), fmt.Sprintf("room %d-b x", round), fmt.Sprintf("new-%d c x", round))
		go func() { answer <- n.AppendBatch(t.Context(), pubs) }()
		w.waiting(1)
		w.pg.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'
			AND datname = current_database() AND wait_event_type = 'Lock'`)
		release()
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		if pubs[0].Seq != message.Seq(round+2) || pubs[1].Seq != message.Seq(round+1) || pubs[2].Seq != 1 || pubs[2].Duplicate {
			t.Errorf("round %d: %+v %+v %+v", round, pubs[0], pubs[1], pubs[2])
		}
	}
	if held, room := n.all("held"), n.all("room"); len(held) != 4 || len(room) != 3 {
		t.Errorf("%d and %d are stored", len(held), len(room))
	}
}

func TestALostAnswerToTheCommitOfABatch(t *testing.T) {
	w := postgresWorld(t, testkit.Postgres(t))
	lose := w.loser()
	n := w.node()
	n.batch("room 0 x")
	lost := lose("room")
	if got := n.batch("room 1 x", "other 1 x"); got != "room2d other1d" {
		t.Errorf("the answer is %s", got)
	}
	happened(t, lost)
	if room, other := n.all("room"), n.all("other"); len(room) != 2 || len(other) != 1 {
		t.Errorf("%d and %d are stored", len(room), len(other))
	}
}

func TestABatchWhileTheDatabaseIsAway(t *testing.T) {
	pg := testkit.StartPostgres(t)
	w := postgresWorld(t, pg)
	n := w.node(func(c *Config) { c.AppendTimeout = time.Second })
	n.batch("room 1 x")
	for what, leave := range map[string]struct{ away, back func() }{
		"hangs": {pg.Pause, pg.Resume}, "is down": {pg.Kill, pg.Start},
	} {
		leave.away()
		began := time.Now()
		// The second waits for its turn behind the first.
		errs := make(chan error)
		for i := range 2 {
			go func() { errs <- n.AppendBatch(t.Context(), drafted(fmt.Sprintf("room 2-%d x", i), "other 2 x")) }()
		}
		for range 2 {
			var batch *message.BatchError
			if err := <-errs; !errors.Is(err, message.ErrUnavailable) || errors.As(err, &batch) {
				t.Errorf("while it %s: %v", what, err)
			}
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("while it %s the answers took %v", what, took)
		}
		leave.back()
		eventually(t, "the same batch is taken", func() error {
			return n.AppendBatch(t.Context(), drafted("room 2-0 x", "other 2 x", "room 2-1 x"))
		})
	}
	if room, other := n.all("room"), n.all("other"); len(room) != 3 || len(other) != 1 {
		t.Errorf("%d and %d are stored", len(room), len(other))
	}
}

func TestCloseFinishesABatchUnderWay(t *testing.T) {
	w := postgresWorld(t, testkit.Postgres(t))
	n := w.node()
	n.stored("room", "0", "x")
	release := w.holdRoom("room")
	answer := make(chan error)
	go func() { answer <- n.AppendBatch(context.Background(), drafted("room 1 x", "other 1 x")) }()
	w.waiting(1)
	closed := make(chan error)
	go func() { closed <- n.Close(context.Background()) }()
	eventually(t, "close has begun", func() error {
		// One that comes too early waits behind the first, hence the bound.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := n.AppendBatch(ctx, drafted("late 1 x")); !errors.Is(err, message.ErrClosed) {
			return fmt.Errorf("late: %w", err)
		}
		return nil
	})
	release()
	if err := errors.Join(<-answer, <-closed); err != nil {
		t.Error(err)
	}
	if all := w.node().all("room"); len(all) != 2 {
		t.Errorf("%d are stored", len(all))
	}
}
