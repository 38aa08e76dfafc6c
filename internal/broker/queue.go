package broker

import (
	"sync"
	"time"

	"switchyard/internal/message"
)

// queueBytes bounds the payloads in one queue, whatever their number.
const queueBytes = 32 << 20

// A publication waits in a queue.
type publication struct {
	room    message.Room
	payload []byte
	at      time.Time // when it was queued
	hops    int       // how many servers sent it on to another
}

// A queue is a bounded first-in-first-out queue that drops its oldest entries
// rather than make a publisher wait: what is old is what the log has delivered
// in the meantime. Any number of goroutines push; one takes.
type queue struct {
	// wake holds a token when there may be something to take. Never closed.
	wake chan struct{}

	mu     sync.Mutex
	ring   []publication // allocated in full by newQueue
	first  int
	count  int
	bytes  int
	closed bool
}

func newQueue(size int) *queue {
	return &queue{wake: make(chan struct{}, 1), ring: make([]publication, size)}
}

// push adds p and returns how many older ones had to go for it. After close it
// refuses: ok is false.
func (q *queue) push(p publication) (dropped int, ok bool) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return 0, false
	}
	for q.count == len(q.ring) || (q.count > 0 && q.bytes+len(p.payload) > queueBytes) {
		q.pop()
		dropped++
	}
	q.ring[(q.first+q.count)%len(q.ring)] = p
	q.count++
	q.bytes += len(p.payload)
	q.mu.Unlock()
	q.notify()
	return dropped, true
}

// pop takes the oldest; the caller holds the lock and knows there is one.
func (q *queue) pop() publication {
	p := q.ring[q.first]
	q.ring[q.first] = publication{} // let go of the payload
	q.first = (q.first + 1) % len(q.ring)
	q.count--
	q.bytes -= len(p.payload)
	return p
}

// dequeue appends the oldest publications to buf, until none is left or their
// payloads pass maxBytes.
func (q *queue) dequeue(buf []publication, maxBytes int) []publication {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n := 0; q.count > 0 && n < maxBytes; {
		p := q.pop()
		n += len(p.payload)
		buf = append(buf, p)
	}
	return buf
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count
}

// notify wakes the taker; it never blocks.
func (q *queue) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close makes push refuse. What is queued can still be taken.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.notify()
}

// drained says that nothing is left and nothing more will come.
func (q *queue) drained() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed && q.count == 0
}
