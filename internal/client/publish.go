package client

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A publishKey identifies a pending publish.
type publishKey struct {
	room message.Room
	id   string
}

// A pendingPublish is a publish that has no answer yet.
type pendingPublish struct {
	key       publishKey
	user      *string // as whom it is to be stored; nil before the first welcome
	order     uint64  // rises with each call of Send and Publish
	ref       string  // the same in each resend, and unique among publishes
	frame     []byte
	data      []byte // part of frame
	done      func(Ack, error)
	conn      *connection // where it was sent last; nil while it waits
	timer     *time.Timer // ends the resending; nil until the first send
	firstSent time.Time   // by both clocks; wallSent is what the wall clock said
	wallSent  time.Time
	// uncertainAttempts counts the attempts that may have been stored.
	uncertainAttempts int
}

// An outbox has the publishes that have no answer yet.
type outbox struct {
	*shared
	slots   chan struct{} // one element for each pending publish
	pending map[publishKey]*pendingPublish
	byRef   map[string]*pendingPublish // the same
	waiting []*pendingPublish          // those to be sent on the current connection, by order
	queues  map[message.Room]*roomQueue
	user    *string     // of the last welcome, "" when anonymous; nil before the first
	count   uint64      // publishes accepted so far
	timer   *time.Timer // sends the next one, or nil
}

// add sends a publish when its turn comes. The caller has acquired a slot, which
// complete releases; when add fails, the caller keeps it.
func (o *outbox) add(p *pendingPublish) error {
	if o.err != nil {
		return o.err
	}
	if o.pending[p.key] != nil {
		return fmt.Errorf("%w: %s in %s", ErrPending, p.key.id, p.key.room)
	}
	if err := o.checkSize(p.frame, p.key.room); err != nil {
		return err
	}
	o.count++
	p.order, p.user = o.count, o.user
	o.pending[p.key], o.byRef[p.ref] = p, p
	o.roomQueue(p.key.room).pending++
	o.waiting = append(o.waiting, p)
	o.pump()
	return nil
}

// pump sends the publishes that may be sent now, in the order of the calls.
func (o *outbox) pump() {
	if o.timer != nil {
		o.timer.Stop()
	}
	if o.current == nil {
		return
	}
	var held []*roomQueue // their next publish can't be sent now
	for i := 0; i < len(o.waiting); {
		p := o.waiting[i]
		q := o.queues[p.key.room]
		if q.timer != nil || q.probe != nil || slices.Contains(held, q) {
			i++
			continue
		}
		frame := p.frame
		if q.hasSentBefore(p) {
			frame = p.followingFrame()
		}
		if o.welcome.MaxFrame > 0 && len(frame) > o.welcome.MaxFrame { // alone it is small enough
			held = append(held, q)
			continue
		}
		if wait := o.current.pacer.wait(kindPublish, len(frame)); wait > 0 {
			if wait < untilAnswered {
				o.timer = o.afterFunc(wait, o.pump)
			}
			return
		}
		o.waiting = slices.Delete(o.waiting, i, i+1)
		o.transmit(p, q, frame)
	}
}

// transmit sends p on the current connection. There is one.
func (o *outbox) transmit(p *pendingPublish, q *roomQueue, frame []byte) {
	p.conn = o.current
	q.sent = append(q.sent, p)
	if q.probing {
		q.probe = p
	}
	if p.timer == nil {
		p.firstSent, p.wallSent = time.Now(), o.opts.wallNow()
		p.timer = o.afterFunc(o.resendWindow(), func() { o.giveUp(p, nil) })
	}
	p.uncertainAttempts++
	o.current.request(frame, p.ref, kindPublish)
}

// followingFrame returns the frame that asks the service not to store p before the
// publish that was sent before it.
func (p *pendingPublish) followingFrame() []byte {
	at := len(p.frame) - len(p.data) - len(`,"data":}`)
	return slices.Concat(p.frame[:at], []byte(`,"follows":true`), p.frame[at:])
}

// resendWindow returns how long a publish is resent: half of the shortest time for
// which the service may remember ids, so that a resend is never stored as a new
// message.
func (o *outbox) resendWindow() time.Duration {
	window := o.opts.IDWindow
	if advertised := time.Duration(o.welcome.IDWindowMS) * time.Millisecond; advertised > 0 && (window <= 0 || advertised < window) {
		window = advertised
	}
	if window <= 0 {
		window = DefaultIDWindow
	}
	return window / 2
}

// giveUp completes p without an answer. cause is the reason; nil means that the
// resend window is over.
func (o *outbox) giveUp(p *pendingPublish, cause error) {
	if o.pending[p.key] == p {
		o.complete(p, Ack{}, unansweredError(p, cause))
		o.pump()
	}
}

// unansweredError returns the error of a publish that got no answer because of
// cause; nil means that the resend window is over.
func unansweredError(p *pendingPublish, cause error) error {
	switch {
	case cause != nil && p.uncertainAttempts == 0: // not sent, or refused because of a rate
		return fmt.Errorf("publish in %s, not stored: %w", p.key.room, cause)
	case cause == nil:
		return fmt.Errorf("publish %s in %s: %w", p.key.id, p.key.room, ErrOutcomeUnknown)
	}
	return fmt.Errorf("publish %s in %s: %w: %w", p.key.id, p.key.room, ErrOutcomeUnknown, cause)
}

// handleAck completes the publish with the ack's ref, if it was sent: an earlier
// publish may have used the same id.
func (o *outbox) handleAck(f *serverFrame) {
	if p := o.pending[publishKey{f.Room, f.ID}]; p != nil && p.timer != nil && f.Ref == p.ref {
		o.complete(p, Ack{f.Room, f.Epoch, f.Seq, f.ID, f.Duplicate}, nil)
	}
}

// completeFromOwnMessage treats a message with the user, id and data of a pending
// publish as its ack. The id alone does not suffice, because ids are unique
// per room and user only.
func (o *outbox) completeFromOwnMessage(m message.Message) {
	if p := o.pending[publishKey{m.Room, m.ID}]; p != nil && p.timer != nil && m.From == *p.user && bytes.Equal(m.Data, p.data) {
		o.complete(p, Ack{Room: m.Room, Epoch: m.Epoch, Seq: m.Seq, ID: m.ID}, nil)
		o.pump()
	}
}

// complete completes p: it removes p everywhere and releases its slot. If p was the
// probe of its room, the others follow. The caller calls pump.
func (o *outbox) complete(p *pendingPublish, ack Ack, err error) {
	delete(o.pending, p.key)
	delete(o.byRef, p.ref)
	<-o.slots
	if p.timer != nil {
		p.timer.Stop()
	}
	if at, found := slices.BinarySearchFunc(o.waiting, p, byOrder); found {
		o.waiting = slices.Delete(o.waiting, at, at+1)
	}
	q := o.queues[p.key.room]
	q.probing = q.probing && q.probe != p
	q.removeSent(p)
	if p.conn != nil {
		p.conn.pacer.answered(p.ref) // by its own message, or it will not be any more
	}
	if q.pending--; q.pending == 0 {
		q.reset()
		delete(o.queues, p.key.room)
	}
	o.queue(func() { p.done(ack, err) })
}

// handleError reports whether ref is that of a pending publish. A temporary
// error has it sent again; any other completes it.
func (o *outbox) handleError(conn *connection, ref string, err *Error) bool {
	p := o.byRef[ref]
	if p == nil {
		return false
	}
	if err.Code == "rate_limited" {
		p.uncertainAttempts-- // refused before the log, so this attempt was not stored
	}
	switch {
	case err.temporary() && p.conn != conn: // it was sent on another connection since
	case err.Code == "rate_limited":
		o.unsend(p) // the connection's pacer says when to send it again
	case err.temporary():
		o.retryAfter(p, err.retryDelay(o.opts.random))
	case p.uncertainAttempts > 1 && err.Code != "conflict":
		// The refusal of a resend does not say whether an earlier attempt was
		// stored, except for conflict: then the id holds other data.
		o.complete(p, Ack{}, fmt.Errorf("publish %s in %s: %w: %w", p.key.id, p.key.room, ErrOutcomeUnknown, err))
	default:
		o.complete(p, Ack{}, err)
	}
	return true
}

// resend sends every pending publish on a new current connection, in order. Those of
// another user fail: they would be stored as the new user's, and twice if an attempt was
// stored already, because ids are unique for each user only.
func (o *outbox) resend() {
	user := ""
	if o.welcome.User != nil {
		user = *o.welcome.User
	}
	if o.user != nil && *o.user != user {
		o.opts.Logger.Warn("the token is another user's: what is pending is not sent as that user", "user", user)
	}
	o.user = &user
	for _, q := range o.queues {
		q.reset()
	}
	o.waiting = nil
	for _, p := range o.pendingInOrder() {
		p.conn = nil
		if p.user == nil {
			p.user = o.user
		}
		if *p.user != user {
			o.complete(p, Ack{}, unansweredError(p, ErrUserChanged))
		} else if !o.resetResendTimer(p) {
			o.complete(p, Ack{}, unansweredError(p, nil))
		} else if err := o.checkSize(p.frame, p.key.room); err != nil {
			o.complete(p, Ack{}, err)
		} else {
			o.waiting = append(o.waiting, p)
		}
	}
	o.pump()
}

// sinceSent returns the time since p was first sent, by the clock that says more. The
// monotonic clock stands still while the computer sleeps, and the wall clock may have
// been set back: a resend after the service has forgotten the id would be stored twice.
func (o *outbox) sinceSent(p *pendingPublish) time.Duration {
	return max(time.Since(p.firstSent), o.opts.wallNow().Sub(p.wallSent))
}

// resetResendTimer recomputes the resend window of p, because the new connection's
// service may remember ids for a longer or shorter time. It returns false
// when the window is over.
func (o *outbox) resetResendTimer(p *pendingPublish) bool {
	if p.timer == nil {
		return true
	}
	remaining := o.resendWindow() - o.sinceSent(p)
	if remaining > 0 {
		p.timer.Reset(remaining)
	}
	return remaining > 0
}

// pendingInOrder returns the pending publishes in the order of the calls.
func (o *outbox) pendingInOrder() []*pendingPublish {
	return slices.SortedFunc(maps.Values(o.pending), byOrder)
}

func byOrder(a, b *pendingPublish) int { return cmp.Compare(a.order, b.order) }

// failLargest fails the publish that must have caused a close with 1009: the
// largest one sent on that connection.
func (o *outbox) failLargest(conn *connection, cause error) {
	var largest *pendingPublish
	for _, p := range o.pending {
		if p.conn == conn && (largest == nil || len(p.frame) > len(largest.frame)) {
			largest = p
		}
	}
	if largest != nil {
		o.complete(largest, Ack{}, errors.Join(ErrTooLarge, cause))
	}
}

// fail fails every pending publish with cause.
func (o *outbox) fail(cause error) {
	for _, p := range o.pendingInOrder() {
		o.complete(p, Ack{}, unansweredError(p, cause))
	}
}

// checkSize returns ErrTooLarge for a frame over the service's max_frame, which is
// unknown before the first welcome.
func (s *shared) checkSize(frame []byte, room message.Room) error {
	if s.welcome.MaxFrame > 0 && len(frame) > s.welcome.MaxFrame {
		return fmt.Errorf("%w: a frame of %d bytes for %s, the limit is %d", ErrTooLarge, len(frame), room, s.welcome.MaxFrame)
	}
	return nil
}
