package hub

import (
	"runtime"
	"sync"
)

// A inbox collects work for a runner goroutine that lives only while there
// is some: an idle topic costs no goroutine. Whoever puts something in never
// waits for the work. Safe for concurrent use; the lock is a leaf.
type inbox[T any] struct {
	mu      sync.Mutex
	items   []T
	spare   []T // the array of the batch before, to be filled again
	weight  int
	running bool
}

// put adds an item that weighs so much, unless that makes more than maxWeight;
// an empty mailbox takes any. It starts the runner where none is under way, so
// that there is never more than one: batches are taken in the order of puts.
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

// dequeueAll hands over everything, or says that the runner is to end. The batch is
// valid until the next take. It yields first: what is just being put then
// leaves in the same turn, which is all the batching there is.
func (in *inbox[T]) dequeueAll() ([]T, bool) {
	runtime.Gosched()
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.items) == 0 {
		in.running = false
		in.items, in.spare = nil, nil // an idle topic keeps no buffers
		return nil, false
	}
	batch := in.items
	clear(in.spare) // what it pointed to is done with
	in.items, in.spare = in.spare[:0], batch
	in.weight = 0
	return batch, true
}
