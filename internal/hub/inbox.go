package hub

import (
	"runtime"
	"sync"
)

// An inbox collects work for a goroutine that exists only while there is work,
// so an idle topic costs no goroutine. Code that adds work never waits for it.
// It is safe for concurrent use; the lock is a leaf.
type inbox[T any] struct {
	mu      sync.Mutex
	items   []T
	spare   []T // the array of the previous batch, to be reused
	weight  int
	running bool
}

// put adds an item of a weight, unless the weights then exceed maxWeight; an
// empty inbox accepts any item. It starts run on a goroutine if none is
// running, so there is never more than one, and batches keep the order of the
// puts.
func (in *inbox[T]) put(item T, weight, maxWeight int, run func()) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.weight > 0 && in.weight+weight > maxWeight {
		return false
	}
	in.items = append(in.items, item)
	in.weight += weight
	if !in.running {
		in.running = true
		go run()
	}
	return true
}

// dequeueAll returns all items, or false if there are none, and then the
// goroutine must end. The batch is valid until the next call. It yields first,
// so that items which are just being put are in the same batch.
func (in *inbox[T]) dequeueAll() ([]T, bool) {
	runtime.Gosched()
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.items) == 0 {
		in.running = false
		in.items, in.spare = nil, nil // an idle inbox keeps no buffers
		return nil, false
	}
	batch := in.items
	clear(in.spare) // so that it keeps nothing alive
	in.items, in.spare = in.spare[:0], batch
	in.weight = 0
	return batch, true
}
