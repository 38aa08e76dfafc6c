package hub

import "sync"

// A catchUpQueue holds the rooms in which one client is behind. One goroutine
// serves them in turn, a page each, and ends when the queue is empty. A client
// that resumes a thousand rooms is not flooded and does not need a thousand
// goroutines. The lock is a leaf: topic.mu may be held.
type catchUpQueue struct {
	mu      sync.Mutex
	tasks   []catchUpTask
	running bool
}

// enqueueCatchUp adds a room to the queue. It does not block.
func (c *Client) enqueueCatchUp(t catchUpTask) {
	c.catchUpQueue.mu.Lock()
	defer c.catchUpQueue.mu.Unlock()
	c.catchUpQueue.tasks = append(c.catchUpQueue.tasks, t)
	if !c.catchUpQueue.running {
		c.catchUpQueue.running = true
		c.hub.spawn(c.catchUpLoop)
	}
}

// catchUpLoop serves the rooms in turn until none is behind. A run may wait for
// the log, for the topic and for the client to read; each wait is bounded. It
// delays only the client's other rooms.
func (c *Client) catchUpLoop() {
	for c.hub.ctx.Err() == nil {
		t, ok := c.catchUpQueue.dequeue()
		if !ok {
			return
		}
		if t.run() {
			c.enqueueCatchUp(t) // behind the other rooms
			continue
		}
		t.member.releaseJoinSlot() // also if the member is gone
	}
}

// refuseUnanswered refuses the queued joins that have no answer yet. Only
// catchUpLoop calls it, so nothing else dequeues meanwhile.
func (c *Client) refuseUnanswered() {
	c.catchUpQueue.mu.Lock()
	tasks := c.catchUpQueue.tasks
	c.catchUpQueue.tasks = nil
	c.catchUpQueue.mu.Unlock()
	for _, t := range tasks {
		if !t.member.refuse() {
			c.enqueueCatchUp(t)
		}
	}
}

// dequeue removes the first task. It returns false, and the loop ends, if there
// is none.
func (q *catchUpQueue) dequeue() (catchUpTask, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.tasks) == 0 {
		q.tasks, q.running = nil, false
		return catchUpTask{}, false
	}
	t := q.tasks[0]
	q.tasks[0] = catchUpTask{}
	q.tasks = q.tasks[1:]
	return t, true
}
