package client

import (
	"cmp"
	"slices"
	"time"
)

// A joinQueue has the joins and leaves of one connection that wait for their turn. They
// are sent in order.
type joinQueue struct {
	waiting []*queuedJoin
	sent    map[string]*queuedJoin // without an answer, by ref
	count   uint64                 // added so far
	timer   *time.Timer            // sends the next one, or nil
}

// A queuedJoin is a join or a leave.
type queuedJoin struct {
	ref   string
	order uint64
	// frame returns the frame, nil if it is not needed any more.
	frame func() []byte
	// onSent is called once it is sent; it may be nil.
	onSent func()
}

// retry puts the request with that ref back in its place, and reports whether there was
// one.
func (q *joinQueue) retry(ref string) bool {
	j := q.sent[ref]
	if j == nil {
		return false
	}
	delete(q.sent, ref)
	at, _ := slices.BinarySearchFunc(q.waiting, j, func(a, b *queuedJoin) int { return cmp.Compare(a.order, b.order) })
	q.waiting = slices.Insert(q.waiting, at, j)
	return true
}

// queueJoin sends a join or a leave on conn when its turn comes.
func (r *rooms) queueJoin(conn *connection, j *queuedJoin) {
	conn.joins.count++
	j.order = conn.joins.count
	conn.joins.waiting = append(conn.joins.waiting, j)
	r.pumpJoins(conn)
}

// pumpJoins sends the joins and leaves that may be sent on conn now. conn may be nil.
func (r *rooms) pumpJoins(conn *connection) {
	if conn == nil || len(conn.joins.waiting) == 0 {
		return
	}
	q := &conn.joins
	if q.timer != nil {
		q.timer.Stop()
	}
	for len(q.waiting) > 0 {
		j := q.waiting[0]
		if frame := j.frame(); frame != nil {
			if wait := conn.pacer.wait(kindJoin, len(frame)); wait > 0 {
				if wait < untilAnswered {
					q.timer = r.afterFunc(wait, func() {
						if conn == r.current || conn == r.next {
							r.pumpJoins(conn)
						}
					})
				}
				return
			}
			if q.sent == nil {
				q.sent = make(map[string]*queuedJoin)
			}
			q.sent[j.ref] = j
			conn.request(frame, j.ref, kindJoin)
			if j.onSent != nil {
				j.onSent()
			}
		}
		q.waiting = q.waiting[1:]
	}
}
