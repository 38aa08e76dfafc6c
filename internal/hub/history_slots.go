package hub

import (
	"context"
	"sync"

	"switchyard/internal/fairqueue"
)

// historySlots let a number of reads of history run at a time. Those that wait are served
// reader by reader. They are safe for concurrent use.
type historySlots struct {
	// mu protects the fields below.
	mu      sync.Mutex
	free    int
	waiting fairqueue.Queue[chan struct{}] // closed when their turn has come
}

func newHistorySlots(size int) *historySlots { return &historySlots{free: size} }

// acquire waits for a slot for the reader. release must follow unless it returns an error.
func (s *historySlots) acquire(ctx context.Context, reader any) error {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	s.waiting.Push(reader, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	if !s.withdraw(reader, turn) {
		s.release() // the turn came at the same moment
	}
	return ctx.Err()
}

// withdraw removes a read that waits. It returns false if its turn has come.
func (s *historySlots) withdraw(reader any, turn chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting.Remove(reader, turn)
}

// release ends a read. The next reader has its turn.
func (s *historySlots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.IsEmpty() {
		s.free++
		return
	}
	close(s.waiting.Pop())
}
