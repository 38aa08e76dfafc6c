package client

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// A retryQueue holds back a room's publishes after the service has temporarily
// refused one of them. Only the oldest, the probe, is resent. The others follow once
// the probe has its answer, which keeps their order. It is guarded by Client.mu.
type retryQueue struct {
	probe *pendingPublish   // sent and without an answer, or nil
	queue []*pendingPublish // by order, without the probe
	timer *time.Timer       // sends the next probe, or nil
}

// enqueueRetry puts p into the retry queue of its room, and schedules a probe after
// wait unless one is scheduled or sent. The caller holds mu.
func (c *Client) enqueueRetry(p *pendingPublish, wait time.Duration) {
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

// add inserts p by its order. The caller holds mu.
func (q *retryQueue) add(p *pendingPublish) {
	at, found := slices.BinarySearchFunc(q.queue, p, byOrder)
	if !found {
		q.queue = slices.Insert(q.queue, at, p)
	}
}

// retryProbe runs when a queue's timer fires. Without a connection it does nothing:
// resendPending sends the probe on the next one.
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

// sendProbe resends the oldest publish of a queue. The caller holds mu and has
// a current connection.
func (c *Client) sendProbe(q *retryQueue) {
	q.probe, q.queue = q.queue[0], q.queue[1:]
	c.transmit(q.probe)
}

// releaseQueue removes a queue and sends its publishes. The caller holds mu.
func (c *Client) releaseQueue(room message.Room, q *retryQueue) {
	delete(c.retryQueues, room)
	if q.timer != nil {
		q.timer.Stop()
	}
	if c.current == nil {
		return // resendPending sends them on the next connection
	}
	for _, p := range q.queue {
		c.transmit(p)
	}
}
