package hub

import (
	"context"
	"slices"
	"sync"
)

// A fairQueue lets a number of reads run at a time. Those that wait are served reader by
// reader, one read each, so that a reader with a thousand reads delays another's by one. It
// is safe for concurrent use.
type fairQueue struct {
	// mu protects the fields below.
	mu      sync.Mutex
	free    int
	waiting map[any][]chan struct{} // the reads of each reader, in order of arrival
	turns   []any                   // the readers that wait, in order of their turns
}

func newFairQueue(size int) *fairQueue {
	return &fairQueue{free: size, waiting: map[any][]chan struct{}{}}
}

// acquire waits for a turn of the reader. release must follow unless it returns an error.
func (q *fairQueue) acquire(ctx context.Context, reader any) error {
	q.mu.Lock()
	if q.free > 0 {
		q.free--
		q.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if len(q.waiting[reader]) == 0 {
		q.turns = append(q.turns, reader)
	}
	q.waiting[reader] = append(q.waiting[reader], turn)
	q.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	if !q.withdraw(reader, turn) {
		q.release() // the turn came at the same moment
	}
	return ctx.Err()
}

// withdraw removes a read that waits. It returns false if its turn has come.
func (q *fairQueue) withdraw(reader any, turn chan struct{}) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting[reader], turn)
	if i < 0 {
		return false
	}
	if q.waiting[reader] = slices.Delete(q.waiting[reader], i, i+1); len(q.waiting[reader]) == 0 {
		delete(q.waiting, reader)
		q.turns = slices.DeleteFunc(q.turns, func(r any) bool { return r == reader })
	}
	return true
}

// release ends a read. The next reader has its turn.
func (q *fairQueue) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.turns) == 0 {
		q.free++
		return
	}
	reader := q.turns[0]
	q.turns = q.turns[1:]
	reads := q.waiting[reader]
	close(reads[0])
	if reads = reads[1:]; len(reads) > 0 {
		q.waiting[reader] = reads
		q.turns = append(q.turns, reader)
	} else {
		delete(q.waiting, reader)
	}
}
