package client

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// A roomQueue has the state of a room that has pending publishes. After an
// unavailable it is probing: only its oldest publish, the probe, is sent. The others
// follow once the probe has its answer, which keeps their order.
type roomQueue struct {
	pending int               // publishes
	sent    []*pendingPublish // on the current connection, without an answer
	probing bool              // only one publish is sent at a time
	probe   *pendingPublish   // sent and without an answer, or nil
	timer   *time.Timer       // ends the wait before the next probe, or nil
}

// hasSentBefore reports whether a publish of an earlier call was sent and has no
// answer. Most often that is the first one.
func (q *roomQueue) hasSentBefore(p *pendingPublish) bool {
	return slices.ContainsFunc(q.sent, func(other *pendingPublish) bool { return other.order < p.order })
}

func (q *roomQueue) removeSent(p *pendingPublish) {
	if at := slices.Index(q.sent, p); at >= 0 {
		q.sent = slices.Delete(q.sent, at, at+1)
	}
	if q.probe == p {
		q.probe = nil
	}
}

// reset forgets what was sent: there is a new connection, or none any more.
func (q *roomQueue) reset() {
	if q.timer != nil {
		q.timer.Stop()
	}
	q.timer, q.probe, q.sent = nil, nil, nil
}

// roomQueue returns the queue of a room, which it creates if there is none.
func (o *outbox) roomQueue(room message.Room) *roomQueue {
	q := o.queues[room]
	if q == nil {
		q = &roomQueue{}
		o.queues[room] = q
	}
	return q
}

// unsend puts p, which was sent, back in its place among those that wait.
func (o *outbox) unsend(p *pendingPublish) *roomQueue {
	q := o.queues[p.key.room]
	q.removeSent(p)
	p.conn = nil
	at, _ := slices.BinarySearchFunc(o.waiting, p, byOrder)
	o.waiting = slices.Insert(o.waiting, at, p)
	return q
}

// retryAfter sends p again after a wait, and the other publishes of its room once p has
// its answer.
func (o *outbox) retryAfter(p *pendingPublish, wait time.Duration) {
	q := o.unsend(p)
	q.probing = true
	if q.probe != nil || q.timer != nil {
		return // the answer to the probe decides
	}
	q.timer = o.afterFunc(wait, func() {
		q.timer = nil
		o.pump()
	})
}
