package hub

import (
	"sync"
	"time"
)

// A turn is a room that a client is to be caught up in. It belongs to the line,
// or to the loop that took it.
type turn struct {
	member *member
	progress
	wait time.Duration // before the next try, after a failed read
}

// turns are the rooms of one client that are behind. They are served one after
// the other, a page each, on one goroutine that lives while there are some: a
// client that resumes a thousand rooms is not drowned in them, and costs no
// more than one goroutine. The lock is a leaf: topic.mu may be held.
type turns struct {
	mu      sync.Mutex
	line    []turn
	running bool
}

// lineUp puts a room in line. It does not block.
func (c *Client) lineUp(t turn) {
	c.turns.mu.Lock()
	defer c.turns.mu.Unlock()
	c.turns.line = append(c.turns.line, t)
	if !c.turns.running {
		c.turns.running = true
		c.hub.spawn(c.catchUpLoop)
	}
}

// catchUpLoop gives each room in line its turn until none is behind. A turn may
// wait for the log, for the topic and for the client to read, each bounded; the
// client's other rooms wait with it, and nobody else.
func (c *Client) catchUpLoop() {
	for c.hub.ctx.Err() == nil {
		t, ok := c.turns.next()
		if !ok {
			return
		}
		if t.take() {
			c.lineUp(t) // behind those that had none yet
			continue
		}
		t.member.answered() // whatever became of it
	}
}

// refuseUnanswered refuses the joins in line that have no answer yet. The line
// is the caller's meanwhile: it is the one goroutine that takes from it.
func (c *Client) refuseUnanswered() {
	c.turns.mu.Lock()
	line := c.turns.line
	c.turns.line = nil
	c.turns.mu.Unlock()
	for _, t := range line {
		if !t.member.refuse() {
			c.lineUp(t)
		}
	}
}

// next takes the first of the line; false ends the loop.
func (q *turns) next() (turn, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.line) == 0 {
		q.line, q.running = nil, false
		return turn{}, false
	}
	t := q.line[0]
	q.line[0] = turn{}
	q.line = q.line[1:]
	return t, true
}
