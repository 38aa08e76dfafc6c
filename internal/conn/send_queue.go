package conn

// A sendQueue holds the frames that wait for the socket of one connection. Conn.mu
// guards it.
type sendQueue struct {
	partial []byte // the rest of a write that the socket accepted in part; it must leave first and whole
	whole   []byte // what partial is the rest of
	frames  [][]byte
	taken   [][]byte // what take returned, as the budget counts it, until it is sent
	bytes   int      // of all these
	budget  *Budget
}

// isEmpty reports whether nothing waits. Frames that take has returned do not wait any more.
func (q *sendQueue) isEmpty() bool { return q.partial == nil && len(q.frames) == 0 }

func (q *sendQueue) push(f []byte) {
	q.frames = append(q.frames, f)
	q.budget.hold(f)
	q.count(len(f))
}

// pushPartial queues the rest of a frame that was not queued before.
func (q *sendQueue) pushPartial(rest, whole []byte) {
	q.partial, q.whole = rest, whole
	q.budget.hold(whole)
	q.count(len(rest))
}

// take dequeues whole frames of about maxWrite bytes together, or the rest of a write
// that the socket accepted in part. They stay counted until sent is called. The queue must
// not be empty.
func (q *sendQueue) take() [][]byte {
	if q.partial != nil {
		frames := [][]byte{q.partial}
		q.taken = [][]byte{q.whole}
		q.partial, q.whole = nil, nil
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
	q.taken = frames
	return frames
}

// sent subtracts from the counts what take has returned, of size bytes, which is written
// or lost.
func (q *sendQueue) sent(size int) {
	q.release(q.taken, size)
	q.taken = nil
}

func (q *sendQueue) release(held [][]byte, size int) {
	for _, f := range held {
		q.budget.release(f)
	}
	q.count(-size)
}

// drop drops the frames of which nothing was written yet.
func (q *sendQueue) drop() {
	size := 0
	for _, f := range q.frames {
		size += len(f)
	}
	q.release(q.frames, size)
	q.frames = nil
}

// clear drops everything.
func (q *sendQueue) clear() {
	q.drop()
	if q.partial != nil {
		q.release([][]byte{q.whole}, len(q.partial))
		q.partial, q.whole = nil, nil
	}
}

// share returns how many bytes of the budget this queue uses.
func (q *sendQueue) share() (size int) {
	if q.bytes == 0 {
		return 0
	}
	for _, held := range [][][]byte{q.frames, q.taken, {q.whole}} {
		for _, f := range held {
			size += q.budget.share(f)
		}
	}
	return size
}

func (q *sendQueue) count(n int) {
	q.bytes += n
	q.budget.queued.Add(int64(n))
}
