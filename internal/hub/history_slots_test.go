package hub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A reader with many reads and others with one each are served in turns.
func TestReadersAreServedInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newHistorySlots(1)
		if err := q.acquire(t.Context(), "first"); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var served []string
		wait := func(reader string) {
			go func() {
				if err := q.acquire(t.Context(), reader); err != nil {
					t.Error(err)
				}
				mu.Lock()
				served = append(served, reader)
				mu.Unlock()
				q.release()
			}()
			synctest.Wait()
		}
		for range 4 {
			wait("greedy")
		}
		wait("ada")
		wait("eve")
		q.release()
		synctest.Wait()
		if want := []string{"greedy", "ada", "eve", "greedy", "greedy", "greedy"}; !slices.Equal(served, want) {
			t.Errorf("served %q, want %q", served, want)
		}
		if q.free != 1 || !q.waiting.IsEmpty() {
			t.Errorf("%d are free; somebody waits: %v", q.free, !q.waiting.IsEmpty())
		}
	})
}

func TestAReadThatNoLongerWaitsTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newHistorySlots(1)
		_ = q.acquire(t.Context(), "first")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.acquire(ctx, "ada"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the wait ends with %v", err)
		}
		if !q.waiting.IsEmpty() {
			t.Error("a read that has ended waits")
		}
		q.release()
		if err := q.acquire(t.Context(), "eve"); err != nil {
			t.Errorf("the next read: %v", err)
		}
	})
}

// Whatever ends at the same moments, each read has its turn or an error, and none is lost.
func TestTurnsAreNotLost(t *testing.T) {
	q := newHistorySlots(3)
	var reads sync.WaitGroup
	for reader := range 8 {
		for i := range 200 {
			reads.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
				defer cancel()
				if q.acquire(ctx, reader) == nil {
					q.release()
				}
			})
		}
	}
	reads.Wait()
	if q.free != 3 || !q.waiting.IsEmpty() {
		t.Errorf("%d are free; somebody waits: %v", q.free, !q.waiting.IsEmpty())
	}
}
