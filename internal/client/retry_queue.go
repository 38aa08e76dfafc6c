package client

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// A retryQueue holds a room's publications back after the service could not say
// whether one of them is stored: only the oldest, the probe, is resent; the
// others follow once it was answered, so that their order stays.
type retryQueue struct {
	probe *publication   // under way, or nil
	queue []*publication // by order
	timer *time.Timer    // until the next probe, or nil
}

// enqueueRetry puts p in its room's lane and sees to it that the oldest there is
// resent after wait. The caller holds mu.
func (c *Client) enqueueRetry(p *publication, wait time.Duration) {
	room := p.key.room
	q := c.retryQueues[room]
	if q == nil {
		q = &retryQueue{}
		c.retryQueues[room] = q
	}
	if q.probe == p {
		q.probe = nil
	}
	p.conn = nil
	q.add(p)
	if q.probe == nil && q.timer == nil {
		q.timer = time.AfterFunc(wait, func() { c.retryProbe(room, q) })
	}
}

// add keeps the queue in order of the calls.
func (q *retryQueue) add(p *publication) {
	at, found := slices.BinarySearchFunc(q.queue, p, byOrder)
	if !found {
		q.queue = slices.Insert(q.queue, at, p)
	}
}

func (c *Client) retryProbe(room message.Room, q *retryQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retryQueues[room] != q {
		return
	}
	q.timer = nil
	if c.current != nil {
		c.sendProbe(q)
	}
}

// sendProbe resends the oldest of a lane; the caller holds mu.
func (c *Client) sendProbe(q *retryQueue) {
	q.probe, q.queue = q.queue[0], q.queue[1:]
	c.transmit(q.probe)
}

// releaseQueue lets a lane's publications go on.
func (c *Client) releaseQueue(room message.Room, q *retryQueue) {
	delete(c.retryQueues, room)
	if q.timer != nil {
		q.timer.Stop()
	}
	if c.current == nil {
		return // begin sends them
	}
	for _, p := range q.queue {
		c.transmit(p)
	}
}
