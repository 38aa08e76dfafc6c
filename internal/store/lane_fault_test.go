package store

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
)

func TestALostConnectionIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 3
		w := &aWriter{fate: func(context.Context, []*entry) error {
			if failures--; failures >= 0 {
				return errLost
			}
			return nil
		}}
		k, _ := oneLane(w)
		p, q := publication("room", "1", "x"), publication("room", "1", "x")
		k.Append(p)
		k.Append(q)
		k.Start(func([]*message.Publication) {})
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.Err != nil || p.Seq != 1 || p.Duplicate || q.Err != nil || q.Seq != 1 || !q.Duplicate {
			t.Errorf("%+v and %+v", p, q)
		}
	})
}

func TestACloseThatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &aWriter{fate: func(ctx context.Context, _ []*entry) error { <-ctx.Done(); return ctx.Err() }}
		k, _ := oneLane(w)
		k.Start(func([]*message.Publication) {})
		var pubs []*message.Publication
		for i := range 600 {
			pubs = append(pubs, publication("room", numbered("id", i), "x"))
			k.Append(pubs[i])
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := k.close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		if took := time.Since(began); took > time.Second+10*time.Millisecond {
			t.Errorf("close took %v", took)
		}
		for _, p := range pubs {
			if !errors.Is(p.Err, message.ErrUnavailable) {
				t.Fatalf("%s: %v", p.ID, p.Err)
			}
		}
	})
}

func TestAnIdleLaneAsksEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pings atomic.Int64
		var gone atomic.Bool
		w := &aWriter{fate: func(context.Context, []*entry) error {
			if pings.Add(1); gone.Load() {
				return errLost
			}
			return nil
		}}
		k, _ := oneLane(w)
		k.Start(func([]*message.Publication) {})
		time.Sleep(time.Minute + time.Millisecond)
		synctest.Wait()
		if n := pings.Load(); n < 55 || n > 65 || k.Check() != nil {
			t.Errorf("%d pings, Check says %v", n, k.Check())
		}
		gone.Store(true)
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if err := k.Check(); !errors.Is(err, errLost) {
			t.Errorf("7 s after the database went: %v", err)
		}
		gone.Store(false)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if err := k.Check(); err != nil {
			t.Errorf("a second after it came back: %v", err)
		}
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// The caller may hold locks that its own settled takes.
func TestARefusalNeverComesFromTheCallersGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &aWriter{fate: func(context.Context, []*entry) error { return nil }}
		k, _ := oneLane(w, func(c *Config) { c.MaxPending = 1 })
		held := make(chan struct{}, 1)
		held <- struct{}{}
		n := 0
		k.Start(func(pubs []*message.Publication) { held <- struct{}{}; n += len(pubs); <-held })
		for i := range 100 {
			k.Append(publication("room", numbered("id", i), "x"))
		}
		<-held
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n != 100 {
			t.Errorf("%d were settled", n)
		}
	})
}

func TestPoolsAndOperationsAreMeasured(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		reg := prometheus.NewRegistry()
		n := w.node(func(c *Config) { c.Registerer = reg })
		n.stored("room", "1", "x")
		n.all("room")
		n.epoch()
		for _, name := range []string{"store_operation_duration_seconds", "store_batch_messages", "store_pool_used",
			"store_pool_idle", "store_pool_max", "store_pending_messages", "store_failed_total"} {
			if got, err := testutil.GatherAndCount(reg, name); err != nil || got == 0 {
				t.Errorf("%s: %d series, %v", name, got, err)
			}
		}
		if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	})
}
