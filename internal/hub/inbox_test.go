package hub

import (
	"sync"
	"testing"
	"testing/synctest"
)

// Whatever many put at once is taken once, each one's in its order, by one
// runner at a time, which ends.
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
				t.Error("two runners at once")
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
						t.Errorf("%d of writer %d comes when %d is due", it.n, it.writer, next[it.writer])
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
				t.Errorf("%d of writer %d were taken", n, w)
			}
		}
		if m.items != nil || m.spare != nil || m.running {
			t.Error("an idle mailbox keeps buffers, or a runner")
		}
	})
}

func TestAnInboxIsBounded(t *testing.T) {
	var m inbox[string]
	m.running = true // nobody takes
	for _, tt := range []struct {
		item   string
		weight int
		taken  bool
	}{
		{"larger than all of it, but alone", 20, true},
		{"one more", 1, false},
		{"without weight", 0, false},
	} {
		if got := m.put(tt.item, tt.weight, 10, nil); got != tt.taken {
			t.Errorf("%s: taken %v", tt.item, got)
		}
	}
	if batch, ok := m.dequeueAll(); !ok || len(batch) != 1 {
		t.Errorf("took %v", batch)
	}
	if !m.put("after it was emptied", 10, 10, nil) {
		t.Error("an empty mailbox refuses")
	}
}
