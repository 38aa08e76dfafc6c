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
func (m *inbox[T]) put(item T, weight, maxWeight int, run func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.weight > 0 && m.weight+weight > maxWeight {
		return false
	}
	m.items = append(m.items, item)
	m.weight += weight
	if !m.running {
		m.running = true
		go run()
	}
	return true
}

// dequeueAll hands over everything, or says that the runner is to end. The batch is
// valid until the next take. It yields first: what is just being put then
// leaves in the same turn, which is all the batching there is.
func (m *inbox[T]) dequeueAll() ([]T, bool) {
	runtime.Gosched()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.items) == 0 {
		m.running = false
		m.items, m.spare = nil, nil // an idle topic keeps no buffers
		return nil, false
	}
	batch := m.items
	clear(m.spare) // what it pointed to is done with
	m.items, m.spare = m.spare[:0], batch
	m.weight = 0
	return batch, true
}
