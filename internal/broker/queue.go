package broker

import (
	"sync"
	"time"

	"switchyard/internal/message"
)

// queueBytes bounds the payloads in one queue, whatever their number.
const queueBytes = 32 << 20

// A broadcast is a payload that is being sent to the subscribers of a room.
type broadcast struct {
	room    message.Room
	payload []byte
	at      time.Time // when it was queued
	hops    int       // how many times a server redirected it
}

// A queue is a bounded first-in-first-out queue. When it is full it drops its
// oldest broadcasts, which the log has delivered in the meantime, so that no
// publisher waits. Any number of goroutines push; one goroutine dequeues.
type queue struct {
	// wake holds a token when there may be something to dequeue. It is never
	// closed.
	wake chan struct{}

	// mu protects the fields below.
	mu     sync.Mutex
	ring   []broadcast // allocated in full by newQueue
	first  int
	count  int
	bytes  int
	closed bool
}

func newQueue(size int) *queue {
	return &queue{wake: make(chan struct{}, 1), ring: make([]broadcast, size)}
}

// push adds p and returns the number of older broadcasts that it dropped. ok
// is false after close: p was not added.
func (q *queue) push(bc broadcast) (dropped int, ok bool) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return 0, false
	}
	for q.count == len(q.ring) || (q.count > 0 && q.bytes+len(bc.payload) > queueBytes) {
		q.pop()
		dropped++
	}
	q.ring[(q.first+q.count)%len(q.ring)] = bc
	q.count++
	q.bytes += len(bc.payload)
	q.mu.Unlock()
	q.notify()
	return dropped, true
}

// pop removes the oldest broadcast. The caller holds mu and has checked that
// there is one.
func (q *queue) pop() broadcast {
	bc := q.ring[q.first]
	q.ring[q.first] = broadcast{} // release the payload
	q.first = (q.first + 1) % len(q.ring)
	q.count--
	q.bytes -= len(bc.payload)
	return bc
}

// dequeue moves the oldest broadcasts to the end of buf, until none is left or
// their payloads together have reached maxBytes.
func (q *queue) dequeue(buf []broadcast, maxBytes int) []broadcast {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n := 0; q.count > 0 && n < maxBytes; {
		bc := q.pop()
		n += len(bc.payload)
		buf = append(buf, bc)
	}
	return buf
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count
}

// notify wakes the goroutine that dequeues. It never blocks.
func (q *queue) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close makes later pushes fail. Queued broadcasts can still be dequeued.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.notify()
}

// closedAndEmpty reports whether the queue is closed and empty.
func (q *queue) closedAndEmpty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed && q.count == 0
}
