package conn

import "sync/atomic"

// A sendQueue holds the frames that wait for the socket of one connection. Conn.mu
// guards it.
type sendQueue struct {
	partial []byte // the rest of a write that the socket accepted in part; it must leave first and whole
	frames  [][]byte
	bytes   int           // of partial and frames
	total   *atomic.Int64 // the sum of all connections
}

// isEmpty reports whether nothing waits. Frames that take has returned do not wait any more.
func (q *sendQueue) isEmpty() bool { return q.partial == nil && len(q.frames) == 0 }

func (q *sendQueue) push(f []byte) {
	q.frames = append(q.frames, f)
	q.count(len(f))
}

// pushPartial queues the rest of a frame that was not queued before.
func (q *sendQueue) pushPartial(rest []byte) {
	q.partial = rest
	q.count(len(rest))
}

// take dequeues whole frames of about maxWrite bytes together, or the rest of a write
// that the socket accepted in part. The bytes stay counted until sent is called.
// The queue must not be empty.
func (q *sendQueue) take() [][]byte {
	if q.partial != nil {
		frames := [][]byte{q.partial}
		q.partial = nil
		return frames
	}
	n, size := 1, len(q.frames[0])
	for n < len(q.frames) && size+len(q.frames[n]) <= maxWrite {
		size += len(q.frames[n])
		n++
	}
	frames := q.frames[:n:n]
	if q.frames = q.frames[n:]; len(q.frames) == 0 {
		q.frames = nil
	}
	return frames
}

// sent subtracts from the counts bytes that take has returned.
func (q *sendQueue) sent(n int) { q.count(-n) }

// drop drops the frames of which nothing was written yet.
func (q *sendQueue) drop() {
	for _, f := range q.frames {
		q.count(-len(f))
	}
	q.frames = nil
}

// clear drops everything.
func (q *sendQueue) clear() {
	q.drop()
	q.count(-len(q.partial))
	q.partial = nil
}

func (q *sendQueue) count(n int) {
	q.bytes += n
	q.total.Add(int64(n))
}
