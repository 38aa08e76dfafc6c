package client

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// A retryQueue holds back a room's publishes after the service has temporarily
// refused one of them. Only the oldest, the probe, is resent. The others follow once
// the probe has its answer, which keeps their order.
type retryQueue struct {
	probe *pendingPublish   // sent and without an answer, or nil
	queue []*pendingPublish // by order, without the probe
	timer *time.Timer       // sends the next probe, or nil
}

// add inserts p by its order.
func (q *retryQueue) add(p *pendingPublish) {
	at, found := slices.BinarySearchFunc(q.queue, p, byOrder)
	if !found {
		q.queue = slices.Insert(q.queue, at, p)
	}
}

// enqueueRetry puts p into the retry queue of its room, and schedules a probe after
// wait unless one is scheduled or sent.
func (o *outbox) enqueueRetry(p *pendingPublish, wait time.Duration) {
	room := p.key.room
	q := o.retryQueues[room]
	if q == nil {
		q = &retryQueue{}
		o.retryQueues[room] = q
	}
	if q.probe == p {
		q.probe = nil
	}
	p.conn = nil
	q.add(p)
	if q.probe == nil && q.timer == nil {
		q.timer = o.afterFunc(wait, func() { o.retryProbe(room, q) })
	}
}

// retryProbe runs when a queue's timer fires. Without a connection it does nothing:
// resend sends the probe on the next one.
func (o *outbox) retryProbe(room message.Room, q *retryQueue) {
	if o.retryQueues[room] != q {
		return
	}
	q.timer = nil
	if o.current != nil {
		o.sendProbe(q)
	}
}

// sendProbe resends the oldest publish of a queue. There is a current
// connection.
func (o *outbox) sendProbe(q *retryQueue) {
	q.probe, q.queue = q.queue[0], q.queue[1:]
	o.transmit(q.probe)
}

// releaseQueue removes a queue and sends its publishes.
func (o *outbox) releaseQueue(room message.Room, q *retryQueue) {
	delete(o.retryQueues, room)
	if q.timer != nil {
		q.timer.Stop()
	}
	if o.current == nil {
		return // resend sends them on the next connection
	}
	for _, p := range q.queue {
		o.transmit(p)
	}
}
