package sharedstate

import (
	"context"
	"sync"
)

const (
	// maxQueuedEvents and maxQueuedEnds bound the backlogs of a node.
	maxQueuedEvents = 8192
	maxQueuedEnds   = 8192
	// sendBatchSize bounds the items that one call of send gets.
	sendBatchSize = 256
)

// A backlog is a bounded queue that a loop sends in batches. A full backlog
// refuses new items.
type backlog[T any] struct {
	limit int
	wake  chan struct{} // holds a token when there may be items; never closed
	sent  chan struct{} // closed by sendLoop

	mu     sync.Mutex // mu protects the fields below.
	items  []T
	closed bool
}

func newBacklog[T any](limit int) *backlog[T] {
	return &backlog[T]{limit: limit, wake: make(chan struct{}, 1), sent: make(chan struct{})}
}

// add appends an item without blocking. It returns false if the backlog is full
// or closed.
func (b *backlog[T]) add(item T) bool {
	b.mu.Lock()
	ok := !b.closed && len(b.items) < b.limit
	if ok {
		b.items = append(b.items, item)
	}
	b.mu.Unlock()
	b.wakeUp()
	return ok
}

func (b *backlog[T]) wakeUp() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// dequeue removes and returns the oldest items, at most sendBatchSize. last
// reports that the backlog is closed and now empty.
func (b *backlog[T]) dequeue() (batch []T, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.items), sendBatchSize)
	batch = b.items[:n:n]
	if b.items = b.items[n:]; len(b.items) == 0 {
		b.items = nil
	}
	return batch, b.closed && b.items == nil
}

// sendLoop sends the items in order. It returns when ctx ends, or when all
// items are sent after a call of flush.
func (b *backlog[T]) sendLoop(ctx context.Context, send func(context.Context, []T)) {
	defer close(b.sent)
	for {
		select {
		case <-b.wake:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			batch, last := b.dequeue()
			if len(batch) > 0 {
				send(ctx, batch)
			}
			if last {
				return
			}
			if len(batch) == 0 {
				break
			}
		}
	}
}

// flush closes the backlog and waits until all items are sent or ctx ends.
func (b *backlog[T]) flush(ctx context.Context) {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wakeUp()
	select {
	case <-b.sent:
	case <-ctx.Done():
	}
}
