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

func TestACommitIsRetriedAfterALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 3
		w := &fakeWriter{respond: func(context.Context, []*queuedPublication) error {
			if failures--; failures >= 0 {
				return errConnectionLost
			}
			return nil
		}}
		k, _ := committerWithWriter(w)
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

func TestCloseIsBoundedByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWriter{respond: func(ctx context.Context, _ []*queuedPublication) error { <-ctx.Done(); return ctx.Err() }}
		k, _ := committerWithWriter(w)
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

func TestAnIdleAppendWorkerPingsEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pings atomic.Int64
		var down atomic.Bool
		w := &fakeWriter{respond: func(context.Context, []*queuedPublication) error {
			if pings.Add(1); down.Load() {
				return errConnectionLost
			}
			return nil
		}}
		k, _ := committerWithWriter(w)
		k.Start(func([]*message.Publication) {})
		time.Sleep(time.Minute + time.Millisecond)
		synctest.Wait()
		if n := pings.Load(); n < 55 || n > 65 || k.Check() != nil {
			t.Errorf("%d pings, Check says %v", n, k.Check())
		}
		down.Store(true)
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if err := k.Check(); !errors.Is(err, errConnectionLost) {
			t.Errorf("7 s after the database went down: %v", err)
		}
		down.Store(false)
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

// The caller of Append may hold locks that its onCompleted takes.
func TestARefusedAppendIsReportedFromAnotherGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWriter{respond: func(context.Context, []*queuedPublication) error { return nil }}
		k, _ := committerWithWriter(w, func(c *Config) { c.MaxPending = 1 })
		callerLock := make(chan struct{}, 1)
		callerLock <- struct{}{}
		n := 0
		k.Start(func(pubs []*message.Publication) { callerLock <- struct{}{}; n += len(pubs); <-callerLock })
		for i := range 100 {
			k.Append(publication("room", numbered("id", i), "x"))
		}
		<-callerLock
		if err := k.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n != 100 {
			t.Errorf("%d were completed", n)
		}
	})
}

func TestPoolsAndOperationsAreMeasured(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		reg := prometheus.NewRegistry()
		n := f.startNode(func(c *Config) { c.Registerer = reg })
		n.mustPublish("room", "1", "x")
		n.readAll("room")
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
