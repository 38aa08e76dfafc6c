package hub

import (
	"context"
	"sync"
)

// A repairQueue holds the topics that are to be repaired. At most
// maxReadsPerKind goroutines serve them in order of arrival and end when there
// are none, so each of thousands of rooms that are behind costs only an entry.
type repairQueue struct {
	mu      sync.Mutex
	topics  []*topic
	workers int
}

// enqueueRepair adds a topic, which has set repairing, to the queue. It does
// not block: topic.mu may be held.
func (h *Hub) enqueueRepair(t *topic) {
	q := &h.repairQueue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.topics = append(q.topics, t)
	if q.workers < maxReadsPerKind && h.ctx.Err() == nil {
		q.workers++
		h.spawn(h.repairLoop)
	}
}

// repairLoop repairs topics, one read each, until there are none. A topic that
// needs another read goes to the end of the queue, so that a busy room does not
// hold up the others.
func (h *Hub) repairLoop() {
	for t := h.repairQueue.dequeue(h.ctx); t != nil; t = h.repairQueue.dequeue(h.ctx) {
		t.repair()
	}
}

// dequeue removes the first topic. It returns nil, and repairLoop ends, if
// there is none.
func (q *repairQueue) dequeue(ctx context.Context) *topic {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.topics) == 0 || ctx.Err() != nil {
		q.workers--
		q.topics = nil
		return nil
	}
	t := q.topics[0]
	q.topics[0] = nil
	q.topics = q.topics[1:]
	return t
}
