package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
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

// A pendingPublish is a publish that has no answer yet. It is guarded by Client.mu.
type pendingPublish struct {
	key       publishKey
	order     uint64 // rises with each call of Send and Publish
	ref       string // the same in each resend, and unique among publishes
	frame     []byte
	data      []byte // part of frame
	done      func(Ack, error)
	conn      *connection // where it was sent last; nil while it waits
	timer     *time.Timer // ends the resending; nil until the first send
	firstSent time.Time
	// uncertainAttempts counts the attempts that may have been stored.
	uncertainAttempts int
}

// callbacks are calls of done functions, to be run once mu is released.
type callbacks []func()

func (c callbacks) run() {
	for _, f := range c {
		f()
	}
}

// NewID returns a random id for a publish.
func NewID() string { return rand.Text() }

// Publish publishes data (a JSON value) in a room and waits for the ack. An empty
// id means a random one. The client resends the message with the same id after a
// reconnect, for half of the service's ID_WINDOW; after that, and when ctx ends
// after the message was sent, the error is ErrOutcomeUnknown. An *Error means
// that the service refused the message; it wraps ErrOutcomeUnknown as well when
// an earlier attempt had no answer. The messages of a room are stored in the
// order of the calls.
func (c *Client) Publish(ctx context.Context, room message.Room, data json.RawMessage, id string) (Ack, error) {
	type result struct {
		ack Ack
		err error
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return Ack{}, c.Err()
	case <-ctx.Done():
		return Ack{}, fmt.Errorf("wait to publish in %s: %w", room, ctx.Err())
	}
	results := make(chan result, 1)
	p, err := c.startPublish(room, data, id, func(ack Ack, err error) { results <- result{ack, err} })
	if err != nil {
		<-c.slots
		return Ack{}, err
	}
	select {
	case r := <-results:
		return r.ack, r.err
	case <-ctx.Done():
		c.giveUp(p, ctx.Err())
		r := <-results // does not block: giveUp, or an earlier answer, has already sent the result
		return r.ack, r.err
	}
}

// Send is Publish without waiting. It calls done once with the outcome, usually
// from the goroutine that calls handlers, and under the same rules. When Send
// returns an error, nothing was sent and done is not called. ErrBusy means that
// MaxPending publishes are pending.
func (c *Client) Send(room message.Room, data json.RawMessage, id string, done func(Ack, error)) error {
	select {
	case c.slots <- struct{}{}:
	default:
		return ErrBusy
	}
	if _, err := c.startPublish(room, data, id, done); err != nil {
		<-c.slots
		return err
	}
	return nil
}

// startPublish checks a publish and sends it, or queues it behind its room's retry
// queue. The caller has acquired a slot, which complete releases; when
// startPublish fails, the caller keeps it.
func (c *Client) startPublish(room message.Room, data []byte, id string, done func(Ack, error)) (*pendingPublish, error) {
	if id == "" {
		id = NewID()
	}
	if _, err := message.ParseRoom(string(room)); err != nil {
		return nil, err
	}
	if err := message.CheckID(id); err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, ErrInvalidData
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &pendingPublish{key: publishKey{room, id}, ref: c.nextRef(), done: done}
	p.frame = newRequest("publish", p.ref, room).text("id", id).data(data).end()
	p.data = p.frame[len(p.frame)-1-len(data) : len(p.frame)-1]
	if c.err != nil {
		return nil, c.err
	}
	if c.pending[p.key] != nil {
		return nil, fmt.Errorf("%w: %s in %s", ErrPending, id, room)
	}
	if err := c.checkSize(p.frame, room); err != nil {
		return nil, err
	}
	c.publishCount++
	p.order = c.publishCount
	c.pending[p.key] = p
	switch q := c.retryQueues[room]; {
	case q != nil:
		q.queue = append(q.queue, p)
	case c.current != nil:
		c.transmit(p)
	}
	return p, nil
}

// transmit sends p on the current connection. The caller holds mu and has one.
func (c *Client) transmit(p *pendingPublish) {
	p.conn = c.current
	if p.timer == nil {
		p.firstSent = time.Now()
		p.timer = time.AfterFunc(c.resendWindow(), func() { c.giveUp(p, nil) })
	}
	p.uncertainAttempts++
	c.current.sock.send(p.frame)
}

// resendWindow returns how long a publish is resent: half of the shortest time for
// which the service may remember ids, so that a resend is never stored as a new
// message. The caller holds mu.
func (c *Client) resendWindow() time.Duration {
	window := c.opts.IDWindow
	if advertised := time.Duration(c.welcome.IDWindowMS) * time.Millisecond; advertised > 0 && (window <= 0 || advertised < window) {
		window = advertised
	}
	if window <= 0 {
		window = DefaultIDWindow
	}
	return window / 2
}

// giveUp completes p without an answer. cause is the reason; nil means that the
// resend window is over.
func (c *Client) giveUp(p *pendingPublish, cause error) {
	c.mu.Lock()
	if c.pending[p.key] != p {
		c.mu.Unlock()
		return
	}
	err := unansweredError(p, cause)
	toRun := c.complete(p, Ack{}, err)
	c.mu.Unlock()
	toRun.run()
}

// unansweredError returns the error of a publish that got no answer because of
// cause; nil means that the resend window is over.
func unansweredError(p *pendingPublish, cause error) error {
	switch {
	case p.timer == nil: // never sent
		return fmt.Errorf("publish in %s, not sent: %w", p.key.room, cause)
	case cause == nil:
		return fmt.Errorf("publish %s in %s: %w", p.key.id, p.key.room, ErrOutcomeUnknown)
	}
	return fmt.Errorf("publish %s in %s: %w: %w", p.key.id, p.key.room, ErrOutcomeUnknown, cause)
}

// completePublish completes the pending publish with that key, if it was sent
// and matches returns true: an earlier publish may have used the same id.
func (c *Client) completePublish(key publishKey, ack Ack, matches func(*pendingPublish) bool) {
	c.mu.Lock()
	var toRun callbacks
	if p := c.pending[key]; p != nil && p.timer != nil && matches(p) {
		toRun = c.complete(p, ack, nil)
	}
	c.mu.Unlock()
	toRun.run()
}

func (c *Client) handleAck(f *serverFrame) {
	c.completePublish(publishKey{f.Room, f.ID}, Ack{f.Room, f.Epoch, f.Seq, f.ID, f.Duplicate},
		func(p *pendingPublish) bool { return f.Ref == p.ref })
}

// completeFromOwnMessage treats a message with the user, id and data of a pending
// publish as its ack. The id alone does not suffice, because ids are unique
// per room and user only.
func (c *Client) completeFromOwnMessage(conn *connection, m message.Message) {
	c.completePublish(publishKey{m.Room, m.ID}, Ack{Room: m.Room, Epoch: m.Epoch, Seq: m.Seq, ID: m.ID},
		func(p *pendingPublish) bool {
			user := conn.welcome.User
			own := (user == nil && m.From == "") || (user != nil && m.From == *user)
			return own && bytes.Equal(m.Data, p.data)
		})
}

// complete completes p: it removes p everywhere and releases its slot. If p
// was the probe of its retry queue, the queue is released. The caller holds mu and
// runs the callbacks after it has released mu.
func (c *Client) complete(p *pendingPublish, ack Ack, err error) callbacks {
	delete(c.pending, p.key)
	<-c.slots
	if p.timer != nil {
		p.timer.Stop()
	}
	if q := c.retryQueues[p.key.room]; q != nil {
		q.queue = slices.DeleteFunc(q.queue, func(other *pendingPublish) bool { return other == p })
		if q.probe == p || (q.probe == nil && len(q.queue) == 0) {
			c.releaseQueue(p.key.room, q)
		}
	}
	return callbacks{func() { p.done(ack, err) }}
}

// handlePublishError reports whether ref is that of a pending publish. A temporary
// error queues it for a retry; any other completes it.
func (c *Client) handlePublishError(ref string, err *Error) bool {
	c.mu.Lock()
	var p *pendingPublish
	for _, candidate := range c.pending {
		if candidate.ref == ref {
			p = candidate
		}
	}
	if p == nil {
		c.mu.Unlock()
		return false
	}
	var toRun callbacks
	if err.Code == "rate_limited" {
		p.uncertainAttempts-- // refused before the log, so this attempt was not stored
	}
	switch {
	case err.temporary():
		c.enqueueRetry(p, err.retryDelay(c.opts.random))
	case p.uncertainAttempts > 1 && err.Code != "conflict":
		// The refusal of a resend does not say whether an earlier attempt was
		// stored, except for conflict: then the id holds other data.
		toRun = c.complete(p, Ack{}, fmt.Errorf("publish %s in %s: %w: %w", p.key.id, p.key.room, ErrOutcomeUnknown, err))
	default:
		toRun = c.complete(p, Ack{}, err)
	}
	c.mu.Unlock()
	toRun.run()
	return true
}

// resendPending sends every pending publish on a new current connection, in
// order, but only the oldest one of a room with a retry queue. The caller holds mu
// and runs the callbacks after it has released mu.
func (c *Client) resendPending() (toRun callbacks) {
	for _, q := range c.retryQueues {
		if q.timer != nil {
			q.timer.Stop()
			q.timer = nil
		}
		if q.probe != nil {
			q.add(q.probe)
			q.probe = nil
		}
	}
	for _, p := range c.pendingInOrder() {
		p.conn = nil
		q := c.retryQueues[p.key.room]
		if !c.resetResendTimer(p) {
			toRun = append(toRun, c.complete(p, Ack{}, unansweredError(p, nil))...)
			continue
		}
		switch err := c.checkSize(p.frame, p.key.room); {
		case err != nil:
			toRun = append(toRun, c.complete(p, Ack{}, err)...)
		case q != nil:
			q.add(p)
		default:
			c.transmit(p)
		}
	}
	for _, q := range c.retryQueues {
		c.sendProbe(q)
	}
	return toRun
}

// resetResendTimer recomputes the resend window of p, because the new connection's
// service may remember ids for a longer or shorter time. It returns false
// when the window is over. The caller holds mu.
func (c *Client) resetResendTimer(p *pendingPublish) bool {
	if p.timer == nil {
		return true
	}
	remaining := c.resendWindow() - time.Since(p.firstSent)
	if remaining > 0 {
		p.timer.Reset(remaining)
	}
	return remaining > 0
}

// pendingInOrder returns the pending publishes in the order of the calls. The
// caller holds mu.
func (c *Client) pendingInOrder() []*pendingPublish {
	return slices.SortedFunc(maps.Values(c.pending), byOrder)
}

func byOrder(a, b *pendingPublish) int { return cmp.Compare(a.order, b.order) }

// failLargest fails the publish that must have caused a close with 1009: the
// largest one sent on that connection.
func (c *Client) failLargest(conn *connection, cause error) {
	c.mu.Lock()
	var largest *pendingPublish
	for _, p := range c.pending {
		if p.conn == conn && (largest == nil || len(p.frame) > len(largest.frame)) {
			largest = p
		}
	}
	var toRun callbacks
	if largest != nil {
		toRun = c.complete(largest, Ack{}, errors.Join(ErrTooLarge, cause))
	}
	c.mu.Unlock()
	toRun.run()
}

// failPending fails every pending publish with cause. The caller holds mu and
// runs the callbacks after it has released mu.
func (c *Client) failPending(cause error) (toRun callbacks) {
	for _, q := range c.retryQueues {
		if q.timer != nil {
			q.timer.Stop()
		}
	}
	clear(c.retryQueues)
	for _, p := range c.pendingInOrder() {
		toRun = append(toRun, c.complete(p, Ack{}, unansweredError(p, cause))...)
	}
	return toRun
}
