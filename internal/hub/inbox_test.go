package hub

import (
	"sync"
	"testing"
	"testing/synctest"
)

// However many goroutines put items at once, each item is dequeued once and in
// the order of its goroutine, by one runner at a time, which ends.
func TestAnInboxHandsOverOnceAndInOrder(t *testing.T) {
	const writers, items = 8, 500
	type item struct{ writer, n int }
	synctest.Test(t, func(t *testing.T) {
		var m inbox[item]
		var mu sync.Mutex
		running, next := 0, [writers]int{}
		run := func() {
			mu.Lock()
			if running++; running > 1 {
				t.Error("two runners ran at once")
			}
			mu.Unlock()
			for {
				mu.Lock()
				batch, ok := m.dequeueAll()
				if !ok {
					running--
					mu.Unlock()
					return
				}
				for _, it := range batch {
					if it.n != next[it.writer] {
						t.Errorf("got item %d of writer %d, want %d", it.n, it.writer, next[it.writer])
					}
					next[it.writer] = it.n + 1
				}
				mu.Unlock()
			}
		}
		for w := range writers {
			go func() {
				for n := range items {
					m.put(item{w, n}, 0, 0, run)
				}
			}()
		}
		synctest.Wait()
		for w, n := range next {
			if n != items {
				t.Errorf("%d items of writer %d were dequeued, want %d", n, w, items)
			}
		}
		if m.items != nil || m.spare != nil || m.running {
			t.Error("an idle inbox keeps buffers or its runner")
		}
	})
}

func TestAnInboxIsBounded(t *testing.T) {
	var m inbox[string]
	m.running = true // so that put starts no runner
	for _, tt := range []struct {
		item     string
		weight   int
		accepted bool
	}{
		{"larger than the bound, but the only one", 20, true},
		{"one more", 1, false},
		{"without weight", 0, false},
	} {
		if got := m.put(tt.item, tt.weight, 10, nil); got != tt.accepted {
			t.Errorf("%s: accepted %v, want %v", tt.item, got, tt.accepted)
		}
	}
	if batch, ok := m.dequeueAll(); !ok || len(batch) != 1 {
		t.Errorf("dequeued %v, want one item", batch)
	}
	if !m.put("after it was emptied", 10, 10, nil) {
		t.Error("an empty inbox refuses an item")
	}
}
