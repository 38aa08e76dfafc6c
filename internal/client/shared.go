package client

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A shared is what all parts of a client share: its locks, and the connections that
// they send on. The locks are only locked in this file.
type shared struct {
	// Static after construction.
	opts    Options
	ctx     context.Context // ends with the client
	cancel  context.CancelFunc
	running sync.WaitGroup // counts the client's own goroutines
	refs    atomic.Uint64  // refs given out so far

	// handlerMu is held while a frame is handled and while a callback runs: two
	// connections are read during a move. It is locked before mu.
	handlerMu sync.Mutex

	// mu protects the state of all parts. Only the link and its
	// moves write the fields below.
	mu           sync.Mutex
	callbacks    []func()    // to be run once mu is released, by the goroutine that holds it
	connectCount uint64      // connections tried so far
	current      *connection // nil unless live
	next         *connection // the next connection of a move, from its welcome on
	welcome      Welcome     // of the current connection, or of the last one
	closing      bool        // Close was called
	err          error       // why the client has ended
}

// locked runs f with mu held, and after it the callbacks that f has queued.
func (s *shared) locked(f func()) {
	s.mu.Lock()
	f()
	toRun := s.callbacks
	s.callbacks = nil
	s.mu.Unlock()
	for _, callback := range toRun {
		callback()
	}
}

// exclusive runs f while no handler runs.
func (s *shared) exclusive(f func()) {
	s.handlerMu.Lock()
	defer s.handlerMu.Unlock()
	f()
}

// exclusiveLocked is locked, with the callbacks under the rules of handlers.
func (s *shared) exclusiveLocked(f func()) { s.exclusive(func() { s.locked(f) }) }

// queue queues a callback. The caller holds mu.
func (s *shared) queue(callback func()) { s.callbacks = append(s.callbacks, callback) }

// notify queues the call of a handler, which may be nil.
func notify[T any](s *shared, handler func(T), event T) {
	if handler != nil {
		s.queue(func() { handler(event) })
	}
}

// afterFunc runs f with mu held after a time.
func (s *shared) afterFunc(wait time.Duration, f func()) *time.Timer {
	return time.AfterFunc(wait, func() { s.locked(f) })
}

// token returns what Options.Token returns, or an error after half a minute or when
// ctx ends: the function may not look at its context.
func (s *shared) token(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	type result struct {
		token string
		err   error
	}
	results := make(chan result, 1)
	go func() {
		token, err := s.opts.Token(ctx)
		results <- result{token, err}
	}()
	select {
	case r := <-results:
		return r.token, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// nextRef returns an unused ref.
func (s *shared) nextRef() string { return "r" + strconv.FormatUint(s.refs.Add(1), 10) }
