package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
)

var (
	errData           = errors.New("the data is refused")
	errConnectionLost = errors.New("connection lost")
)

// A fakeWriter stores in memory. respond decides how long a batch takes and
// whether it fails.
type fakeWriter struct {
	respond func(ctx context.Context, batch []*queuedPublication) error
	batches [][]*queuedPublication
	head    message.Seq
	closed  bool
}

func (w *fakeWriter) commit(ctx context.Context, batch []*queuedPublication) (message.Epoch, []result, error) {
	w.batches = append(w.batches, batch)
	if w.respond != nil {
		if err := w.respond(ctx, batch); err != nil {
			return "", nil, err
		}
	}
	results := make([]result, len(batch))
	for i := range batch {
		w.head++
		results[i] = result{seq: w.head, at: time.Now()}
	}
	return "epoch", results, nil
}

func (w *fakeWriter) commitIf(ctx context.Context, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error) {
	head := w.head
	epoch, results, err := w.commit(ctx, batch)
	if err == nil {
		err = precommit(results)
	}
	if err != nil {
		w.head = head
		return "", nil, err
	}
	return epoch, results, nil
}

func (w *fakeWriter) ping(ctx context.Context) error {
	if w.respond == nil {
		return nil
	}
	return w.respond(ctx, nil)
}

func (w *fakeWriter) isDataError(err error) bool { return errors.Is(err, errData) }
func (w *fakeWriter) close()                     { w.closed = true }

// committerWithWriter returns a committer, not started, of one append worker over w.
func committerWithWriter(w *fakeWriter, change ...func(*Config)) (*committer, *metrics) {
	return newTestCommitter(w, &fakeWriter{}, change...)
}

// committerWithAtomicWriter returns a committer, not started, whose atomic
// batches w writes.
func committerWithAtomicWriter(w *fakeWriter, change ...func(*Config)) (*committer, *metrics) {
	return newTestCommitter(&fakeWriter{}, w, change...)
}

func newTestCommitter(w *fakeWriter, batchWriter *fakeWriter, change ...func(*Config)) (*committer, *metrics) {
	var c Config
	for _, f := range change {
		f(&c)
	}
	m := newMetrics(prometheus.NewRegistry())
	return newCommitter(c.withDefaults(), m, []writer{w}, batchWriter), m
}

func publication(room, id, data string) *message.Publication {
	return &message.Publication{Draft: message.Draft{Room: message.Room(room), ID: id, Data: []byte(data)}}
}

func TestPendingPublicationsFormTheNextBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWriter{respond: func(context.Context, []*queuedPublication) error { time.Sleep(time.Millisecond); return nil }}
		k, _ := committerWithWriter(w)
		completed := 0
		k.Start(func(pubs []*message.Publication) { completed += len(pubs) })
		k.Append(publication("room", "first", "x"))
		synctest.Wait() // its commit is under way
		for i := range 300 {
			k.Append(publication("room", numbered("id", i), "x"))
		}
		big := strings.Repeat("x", batchBytes*2/3)
		for i := range 2 {
			k.Append(publication("room", numbered("big", i), big))
		}
		k.Append(publication("room", "huge", big+big))
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var sizes []int
		for _, b := range w.batches {
			sizes = append(sizes, len(b))
		}
		// After the full batch, 44 small ones are left, and one big one fits.
		if want := []int{1, 256, 45, 1, 1}; !slices.Equal(sizes, want) {
			t.Errorf("batches of %v, want %v", sizes, want)
		}
		if completed != 304 {
			t.Errorf("%d were completed", completed)
		}
		if !w.closed {
			t.Error("the connection was left open")
		}
	})
}

func TestSplittingABatchFindsTheRejectedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWriter{respond: func(_ context.Context, batch []*queuedPublication) error {
			for _, q := range batch {
				if string(q.pub.Data) == "bad" {
					return errData
				}
			}
			return nil
		}}
		k, m := committerWithWriter(w)
		var pubs []*message.Publication
		for i := range 256 {
			data := "good"
			if i == 3 || i == 200 || i == 255 {
				data = "bad"
			}
			pubs = append(pubs, publication("room", numbered("id", i), data))
			k.Append(pubs[i])
		}
		calls := 0
		k.Start(func([]*message.Publication) { calls++ })
		synctest.Wait()
		if calls != 1 {
			t.Errorf("onCompleted was called %d times for one room of one batch", calls)
		}
		next := message.Seq(1)
		for i, p := range pubs {
			if string(p.Data) == "bad" {
				if !errors.Is(p.Err, message.ErrRejected) {
					t.Errorf("%d: %v", i, p.Err)
				}
				continue
			}
			if p.Err != nil || p.Seq != next {
				t.Fatalf("%d: seq %d, want %d, %v", i, p.Seq, next, p.Err)
			}
			next++
		}
		if len(w.batches) > 60 {
			t.Errorf("it took %d transactions", len(w.batches))
		}
		if got := testutil.ToFloat64(m.failed.WithLabelValues(reasonRejected)); got != 3 {
			t.Errorf("store_failed_total{reason=rejected} is %v", got)
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEachPublicationTimesOutOnItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The database accepts everything and never answers.
		w := &fakeWriter{respond: func(ctx context.Context, _ []*queuedPublication) error { <-ctx.Done(); return ctx.Err() }}
		k, m := committerWithWriter(w)
		took := map[string]time.Duration{}
		began := map[string]time.Time{}
		k.Start(func(pubs []*message.Publication) {
			for _, p := range pubs {
				took[p.ID] = time.Since(began[p.ID])
				if !errors.Is(p.Err, message.ErrUnavailable) {
					t.Errorf("%s: %v", p.ID, p.Err)
				}
			}
		})
		for i := range 40 {
			id := numbered("id", i)
			began[id] = time.Now()
			k.Append(publication("room", id, "x"))
			time.Sleep(100 * time.Millisecond)
		}
		if k.Check() != nil {
			t.Error("Check returns an error before 5 s have passed")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(took) != 40 {
			t.Fatalf("%d were completed", len(took))
		}
		for id, d := range took {
			if d < 5*time.Second || d > 6250*time.Millisecond {
				t.Errorf("%s was completed after %v", id, d)
			}
		}
		if err := k.Check(); err == nil || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("Check: %v", err)
		}
		if got := testutil.ToFloat64(m.failed.WithLabelValues(reasonTimeout)); got != 40 {
			t.Errorf("store_failed_total{reason=timeout} is %v", got)
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// A batch is committed in halves because of a data error, and the database goes
// down in between: the second half must not overtake what is left of the first.
func TestASplitBatchKeepsItsOrderThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := &fakeWriter{respond: func(_ context.Context, batch []*queuedPublication) error {
			has := func(id string) bool {
				return slices.ContainsFunc(batch, func(q *queuedPublication) bool { return q.pub.ID == id })
			}
			switch {
			case has("plug"):
				time.Sleep(2 * time.Second) // the others gather meanwhile
			case len(batch) == 4:
				return errData
			case (has("a") || has("b")) && time.Since(began) < 5500*time.Millisecond:
				return errConnectionLost
			}
			return nil
		}}
		k, _ := committerWithWriter(w)
		seqs := map[string]message.Seq{}
		k.Start(func(pubs []*message.Publication) {
			for _, p := range pubs {
				seqs[p.ID] = p.Seq
			}
		})
		k.Append(publication("room", "plug", "x"))
		synctest.Wait()
		k.Append(publication("room", "a", "x"))
		time.Sleep(1900 * time.Millisecond)
		for _, id := range []string{"b", "c", "d"} {
			k.Append(publication("room", id, "x"))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if seqs["a"] != 0 || seqs["b"] == 0 || seqs["b"] >= seqs["c"] || seqs["c"] >= seqs["d"] {
			t.Errorf("numbered %v, want b, c, d in this order and a not", seqs)
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// In an outage the oldest publication of a batch reaches its deadline. The rest
// of the batch must stay ahead of the publications that came after it.
func TestPublicationsKeepTheirOrderThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := &fakeWriter{respond: func(_ context.Context, batch []*queuedPublication) error {
			switch since := time.Since(began); {
			case batch[0].pub.ID == "plug":
				time.Sleep(2 * time.Second) // a and b gather in the meantime
			case since < 5500*time.Millisecond:
				return errConnectionLost
			}
			return nil
		}}
		k, _ := committerWithWriter(w)
		var order []string
		k.Start(func(pubs []*message.Publication) {
			for _, p := range pubs {
				if p.Err == nil {
					order = append(order, p.ID)
				}
			}
		})
		for _, id := range []string{"plug", "a", "b", "c", "d"} {
			k.Append(publication("room", id, "x"))
			if synctest.Wait(); id != "plug" {
				time.Sleep(time.Second)
			}
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(order, " "); got != "plug b c d" {
			t.Errorf("stored are %s, want plug b c d in this order", got)
		}
	})
}

// Under a steady stream, a publication reaches its deadline each millisecond.
// An attempt must still be long enough for a database that is reachable again.
func TestRecoveryUnderASteadyStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := time.Now().Add(20 * time.Second)
		w := &fakeWriter{respond: func(ctx context.Context, _ []*queuedPublication) error {
			answer := 30 * time.Millisecond // time to connect and commit
			if time.Now().Before(back) {
				answer = time.Hour
			}
			select {
			case <-time.After(answer):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		k, _ := committerWithWriter(w)
		var stored time.Time
		k.Start(func(pubs []*message.Publication) {
			if pubs[len(pubs)-1].Err == nil && stored.IsZero() {
				stored = time.Now()
			}
		})
		for i := range 25_000 {
			k.Append(publication("room", numbered("id", i), "x"))
			time.Sleep(time.Millisecond)
		}
		if stored.IsZero() || stored.Sub(back) > 2*time.Second {
			t.Errorf("first stored %v after the database came back", stored.Sub(back))
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
