package sharedstate

import (
	"context"
	"sync"
)

const (
	// maxQueuedEvents and maxQueuedEnds bound what waits to be sent.
	maxQueuedEvents = 8192
	maxQueuedEnds   = 8192
	// sendBatchSize is how much of it goes out at once.
	sendBatchSize = 256
)

// A backlog is what waits for a loop to send it. It is bounded: what comes when
// it is full is refused.
type backlog[T any] struct {
	limit   int
	wake    chan struct{} // holds a token when there may be something; never closed
	drained chan struct{} // closed by drainLoop

	mu     sync.Mutex // Protects following.
	items  []T
	closed bool
}

func newBacklog[T any](limit int) *backlog[T] {
	return &backlog[T]{limit: limit, wake: make(chan struct{}, 1), drained: make(chan struct{})}
}

// add never blocks; false says that there was no room, or that it is closed.
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

// dequeue returns the oldest, sendBatchSize at most; last says that none will
// follow.
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

// drainLoop sends what waits, in order, until ctx ends or all is sent after
// flush was called.
func (b *backlog[T]) drainLoop(ctx context.Context, send func(context.Context, []T)) {
	defer close(b.drained)
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

// flush refuses what comes from now on, and waits until the rest is sent or
// ctx ends.
func (b *backlog[T]) flush(ctx context.Context) {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wakeUp()
	select {
	case <-b.drained:
	case <-ctx.Done():
	}
}
