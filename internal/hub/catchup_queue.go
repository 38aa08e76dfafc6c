package hub

import (
	"sync"
	"time"
)

// A catchUpTask is a room that a client is to be caught up in. It belongs to the line,
// or to the loop that took it.
type catchUpTask struct {
	member *member
	progress
	backoff time.Duration // before the next try, after a failed read
}

// catchUpQueue are the rooms of one client that are behind. They are served one after
// the other, a page each, on one goroutine that lives while there are some: a
// client that resumes a thousand rooms is not drowned in them, and costs no
// more than one goroutine. The lock is a leaf: topic.mu may be held.
type catchUpQueue struct {
	mu      sync.Mutex
	tasks   []catchUpTask
	running bool
}

// enqueueCatchUp puts a room in line. It does not block.
func (c *Client) enqueueCatchUp(t catchUpTask) {
	c.catchUpQueue.mu.Lock()
	defer c.catchUpQueue.mu.Unlock()
	c.catchUpQueue.tasks = append(c.catchUpQueue.tasks, t)
	if !c.catchUpQueue.running {
		c.catchUpQueue.running = true
		c.hub.spawn(c.catchUpLoop)
	}
}

// catchUpLoop gives each room in line its turn until none is behind. A turn may
// wait for the log, for the topic and for the client to read, each bounded; the
// client's other rooms wait with it, and nobody else.
func (c *Client) catchUpLoop() {
	for c.hub.ctx.Err() == nil {
		t, ok := c.catchUpQueue.dequeue()
		if !ok {
			return
		}
		if t.run() {
			c.enqueueCatchUp(t) // behind those that had none yet
			continue
		}
		t.member.releaseJoinSlot() // whatever became of it
	}
}

// refuseUnanswered refuses the joins in line that have no answer yet. The line
// is the caller's meanwhile: it is the one goroutine that takes from it.
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

// dequeue takes the first of the line; false ends the loop.
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
