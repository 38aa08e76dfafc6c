package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
)

// publications returns a publication from ann for each line "room id data".
func publications(lines ...string) []*message.Publication {
	var pubs []*message.Publication
	for _, line := range lines {
		f := strings.Fields(line)
		pubs = append(pubs, &message.Publication{
			Draft:  message.Draft{Room: message.Room(f[0]), ID: f[1], From: "ann", Data: []byte(f[2])},
			Opaque: make(chan struct{}),
		})
	}
	return pubs
}

// mustAppendBatch appends a batch that must succeed, and returns the room and
// seq of each publication, with a d behind duplicates.
func (n *node) mustAppendBatch(lines ...string) string {
	n.t.Helper()
	pubs := publications(lines...)
	if err := n.AppendBatch(n.t.Context(), pubs); err != nil {
		n.t.Fatalf("%q: %v", lines, err)
	}
	var got []string
	for _, p := range pubs {
		select {
		case <-p.Opaque.(chan struct{}):
		default:
			n.t.Errorf("%s of %s was not completed when the call returned", p.ID, p.Room)
		}
		if p.Epoch == "" || p.At.IsZero() || p.Err != nil {
			n.t.Errorf("the outcome of %s: %+v", p.ID, p)
		}
		line := fmt.Sprint(p.Room, p.Seq)
		if p.Duplicate {
			line += "d"
		}
		got = append(got, line)
	}
	return strings.Join(got, " ")
}

// expectBatchRefused appends a batch that must fail for the publication at index.
func (n *node) expectBatchRefused(want error, index int, lines ...string) {
	n.t.Helper()
	pubs := publications(lines...)
	err := n.AppendBatch(n.t.Context(), pubs)
	var batch *message.BatchError
	if !errors.Is(err, want) || !errors.As(err, &batch) || batch.Index != index {
		n.t.Errorf("%q: got %v, want index %d and %v", lines, err, index, want)
	}
	for _, p := range pubs {
		select {
		case <-p.Opaque.(chan struct{}):
			n.t.Errorf("%s of a refused batch was completed", p.ID)
		default:
		}
		if p.Seq != 0 || p.Duplicate {
			n.t.Errorf("%s of a refused batch has an outcome: %+v", p.ID, p)
		}
	}
}

func TestABatchIsStoredAtomicallyAndInOrder(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.AppendWorkers = 3 })
		n.mustPublish("b", "0", "x")
		start := n.currentCursor() // transactions of other databases on the server may be older than this log
		if got := n.mustAppendBatch("b 1 x", "a 1 x", "b 2 x", "c 1 x", "a 2 x"); got != "b2 a1 b3 c1 a2" {
			t.Errorf("the answers are %s", got)
		}
		// A backend that got no answer sends the same batch again, with more
		// messages in it.
		if got := n.mustAppendBatch("b 1 x", "a 1 x", "b 3 x", "b 3 x", "b 0 x"); got != "b2d a1d b4 b4d b1d" {
			t.Errorf("the answers to the second are %s", got)
		}
		for room, want := range map[string]int{"a": 2, "b": 4, "c": 1} {
			if all := n.readAll(room); len(all) != want {
				t.Errorf("%s holds %d, want %d", room, len(all), want)
			}
		}
		c, err := n.Commits(t.Context(), start)
		if err != nil || c.Incomplete || len(c.Heads) != 3 {
			t.Errorf("the feed reports %+v, %v", c, err)
		}
	})
}

func TestOneConflictFailsTheWholeBatch(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		n.mustPublish("room", "id", "mine")
		n.expectBatchRefused(message.ErrConflict, 2, "new 1 x", "room 2 x", "room id other", "room 3 x")
		n.expectBatchRefused(message.ErrConflict, 3, "new 1 x", "new 2 x", "room 2 x", "new 1 y")
		// With the repeated id in front, the index of the conflicting message
		// differs from that of its entry.
		n.expectBatchRefused(message.ErrConflict, 2, "new 1 x", "new 1 x", "room id other")
		if all := n.readAll("room"); len(all) != 1 {
			t.Errorf("%d are stored, want 1", len(all))
		}
		if _, heads, err := n.Heads(t.Context(), []message.Room{"new"}); err != nil || heads[0].Seq != 0 {
			t.Errorf("a refused batch left %v, %v", heads, err)
		}
		if got := n.mustAppendBatch("room id mine", "room 2 x"); got != "room1d room2" {
			t.Errorf("after the refusals: %s", got)
		}
	})
}

func TestOnePoisonMessageFailsTheWholeBatch(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		f.rejectPoison()
		for _, bad := range []int{0, 100, 255} {
			lines := make([]string, 256)
			for i := range lines {
				lines[i] = fmt.Sprintf("room-%d id-%d x", i%5, i)
			}
			lines[bad] = "room-1 bad poison"
			n.expectBatchRefused(message.ErrRejected, bad, lines...)
		}
		n.expectBatchRefused(message.ErrRejected, 0, "room bad poison")
		if rooms, _, err := n.ListRooms(t.Context(), "", "", 10); err != nil || len(rooms) != 0 {
			t.Errorf("refused batches left %v, %v", rooms, err)
		}
		n.mustAppendBatch("room good x")
	})
}

// Wherever the poison message is in a batch, the error names it, and the search
// for it stores nothing.
func TestTheRejectedMessageOfABatchIsFound(t *testing.T) {
	for size := 1; size <= 9; size++ {
		for bad := range size {
			w := &fakeWriter{respond: func(_ context.Context, batch []*queuedPublication) error {
				for _, q := range batch {
					if string(q.pub.Data) == "poison" {
						return errData
					}
				}
				return nil
			}}
			k, _ := committerWithAtomicWriter(w)
			k.Start(func([]*message.Publication) { t.Error("a refused batch was completed") })
			lines := make([]string, size)
			for i := range lines {
				lines[i] = fmt.Sprintf("room id-%d x", i)
			}
			lines[bad] = "room bad poison"
			var batch *message.BatchError
			err := k.AppendBatch(t.Context(), publications(lines...))
			if !errors.As(err, &batch) || batch.Index != bad || !errors.Is(err, message.ErrRejected) || w.head != 0 {
				t.Errorf("message %d of %d: %v, head %d", bad, size, err, w.head)
			}
			if err := k.close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestBatchesOverTheLimitAreRefused(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.MaxPending = 300 })
		many := make([]string, 257)
		for i := range many {
			many[i] = fmt.Sprintf("room id-%d x", i)
		}
		half := strings.Repeat("x", batchBytes/2)
		for what, lines := range map[string][]string{
			"none": {}, "257": many, "over 1 MiB": {"room 1 " + half, "room 2 " + half, "room 3 x"},
		} {
			var invalid *message.InvalidError
			if err := n.AppendBatch(t.Context(), publications(lines...)); !errors.As(err, &invalid) || invalid.Field != "messages" {
				t.Errorf("%s: %v", what, err)
			}
		}
		n.mustAppendBatch(many[:256]...)
		n.mustAppendBatch("room big-1 "+half, "room big-2 "+half)
		if all := n.readAll("room"); len(all) != 258 {
			t.Errorf("%d are stored", len(all))
		}
	})
}

// Batches and single publications of all nodes go to the same few rooms, in
// every order. A batch's messages in a room have consecutive seqs.
func TestBatchesAndSinglePublicationsInTheSameRooms(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		const callers, rounds, rooms = 4, 25, 6
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		var nodes []*node
		for range f.maxNodes {
			nodes = append(nodes, f.startNode(func(c *Config) { c.AppendWorkers = 3 }))
		}
		var done sync.WaitGroup
		for caller := range callers {
			done.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(caller)))
				n := nodes[caller%len(nodes)]
				for round := range rounds {
					var lines []string
					for i := range 2 + r.IntN(8) {
						lines = append(lines, fmt.Sprintf("room-%d batch-%d-%d-%d x", r.IntN(rooms), caller, round, i))
					}
					var singles []*message.Publication
					for i := range r.IntN(4) {
						singles = append(singles, n.append(numbered("room", r.IntN(rooms)), "bob", fmt.Sprintf("one-%d-%d-%d", caller, round, i), "x"))
					}
					pubs := publications(lines...)
					if err := n.AppendBatch(t.Context(), pubs); err != nil {
						t.Errorf("caller %d, round %d: %v", caller, round, err)
					}
					last := map[message.Room]message.Seq{}
					for _, p := range pubs {
						if before := last[p.Room]; p.Duplicate || before > 0 && p.Seq != before+1 {
							t.Errorf("%s of %s has %d, after %d", p.ID, p.Room, p.Seq, before)
						}
						last[p.Room] = p.Seq
					}
					for _, p := range singles {
						if wait(t, p); p.Err != nil {
							t.Error(p.Err)
						}
					}
				}
			})
		}
		done.Wait()
		for r := range rooms {
			nodes[0].readAll(numbered("room", r)) // fails on a hole
		}
		if f.pg != nil {
			if got := f.pg.Query(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); got != "0" {
				t.Errorf("%s deadlocks", got)
			}
		}
	})
}

func TestABatchIsRetriedUntilItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries, fails := 0, 3
		w := &fakeWriter{respond: func(context.Context, []*queuedPublication) error {
			if tries++; tries <= fails {
				return errConnectionLost
			}
			return nil
		}}
		k, m := committerWithAtomicWriter(w)
		completed := 0
		k.Start(func(pubs []*message.Publication) { completed += len(pubs) })
		pubs := publications("room 1 x", "room 1 x")
		if err := k.AppendBatch(t.Context(), pubs); err != nil || pubs[0].Duplicate || !pubs[1].Duplicate || completed != 2 {
			t.Errorf("%v, %d completed, %+v %+v", err, completed, pubs[0], pubs[1])
		}
		fails = 1 << 30
		began := time.Now()
		err := k.AppendBatch(t.Context(), publications("room 2 x"))
		if took := time.Since(began); !errors.Is(err, message.ErrUnavailable) || !errors.Is(err, errConnectionLost) || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		// A caller that gives up ends the retries, not the attempt under way.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		err = k.AppendBatch(ctx, publications("room 3 x"))
		if took := time.Since(began); !errors.Is(err, message.ErrUnavailable) || took > 2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := k.AppendBatch(t.Context(), publications("room 4 x")); !errors.Is(err, message.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
		for reason, want := range map[string]float64{reasonTimeout: 2, reasonClosed: 1} {
			if got := testutil.ToFloat64(m.failed.WithLabelValues(reason)); got != want {
				t.Errorf("store_failed_total{reason=%s} is %v, want %v", reason, got, want)
			}
		}
	})
}

func TestPendingBatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWriter{respond: func(ctx context.Context, _ []*queuedPublication) error { <-ctx.Done(); return ctx.Err() }}
		k, m := committerWithAtomicWriter(w, func(c *Config) { c.MaxPending = 5 })
		k.Start(func([]*message.Publication) {})
		errs := make(chan error, 2)
		for range 2 { // one is under way, and one waits for it
			go func() { errs <- k.AppendBatch(t.Context(), publications("room 1 x", "room 2 x")) }()
		}
		synctest.Wait()
		began := time.Now()
		if err := k.AppendBatch(t.Context(), publications("room 3 x", "room 4 x")); !errors.Is(err, message.ErrUnavailable) || time.Since(began) > 0 {
			t.Errorf("beyond the bound: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.close(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 1100*time.Millisecond {
			t.Errorf("close: %v after %v", err, time.Since(began))
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, message.ErrUnavailable) {
				t.Errorf("a batch that close cut short: %v", err)
			}
		}
		if got := testutil.ToFloat64(m.failed.WithLabelValues(reasonPending)); got != 2 {
			t.Errorf("store_failed_total{reason=pending} is %v", got)
		}
		if left := k.pending.count.Load(); left != 0 {
			t.Errorf("%d still count as pending", left)
		}
	})
}

// Calls of onCompleted for one room never overlap, whether an append worker or
// the atomic appender makes them.
func TestCompletionsOfOneRoomDoNotOverlap(t *testing.T) {
	k, _ := committerWithAtomicWriter(&fakeWriter{})
	var inside, calls atomic.Int32
	k.Start(func([]*message.Publication) {
		if inside.Add(1) > 1 {
			t.Error("two calls of onCompleted for one room overlap")
		}
		<-time.After(2 * time.Millisecond) // its work
		inside.Add(-1)
		calls.Add(1)
	})
	for range 20 {
		k.Append(publication("room", "a", "x"))
		if err := k.AppendBatch(t.Context(), publications("room 1 x")); err != nil {
			t.Error(err)
		}
	}
	if err := k.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := calls.Load(); n < 21 {
		t.Errorf("onCompleted was called %d times", n)
	}
}
