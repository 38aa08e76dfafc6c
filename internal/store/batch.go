package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// commit stores a batch and settles it, one call a room. When the time of some
// is over, it settles those; the others go back to the front of the queue.
func (l *lane) commit(batch []*entry) {
	clear(l.seen)
	unique := make([]*entry, 0, len(batch))
	for _, e := range batch {
		k := key{string(e.pub.Room), e.pub.From, e.pub.ID}
		if e.first = l.seen[k]; e.first == nil {
			l.seen[k] = e
			unique = append(unique, e)
		}
		e.done = false
	}
	l.m.batch.Observe(float64(len(batch)))
	l.store(unique)
	size := 0
	var pubs []*message.Publication
	var left []*entry
	for _, e := range batch {
		if e.first != nil && e.first.done {
			l.follow(e)
		}
		if !e.done {
			left = append(left, e)
			continue
		}
		pubs = append(pubs, e.pub)
		size += len(e.pub.Data)
	}
	l.putBack(left)
	l.pending.remove(len(pubs), size)
	l.hand(pubs)
}

// follow settles an entry from the one with the same id before it in its batch.
func (l *lane) follow(e *entry) {
	first := e.first.pub
	e.done = true
	switch {
	case first.Err == nil && e.digest != e.first.digest:
		l.fail(e, errConflict, reasonConflict)
	case first.Err == nil:
		e.pub.Epoch, e.pub.Seq, e.pub.At, e.pub.Duplicate = first.Epoch, first.Seq, first.At, true
	case e.digest == e.first.digest || errors.Is(first.Err, message.ErrUnavailable):
		e.pub.Err = first.Err
	default:
		// The first one was at fault for its own data: this one may be the
		// resend of what is stored under the id.
		e.done = false
		l.store([]*entry{e})
	}
}

// store commits entries, in halves when the database refuses them, until each
// has its outcome or the time of some is over. Halves keep their order, so a
// room's publications are numbered as they came.
func (l *lane) store(entries []*entry) {
	for len(entries) > 0 && !l.expire(entries) {
		epoch, results, err := l.attempt(entries)
		var held *heldError
		switch {
		case err == nil:
			l.apply(entries, epoch, results)
			return
		case errors.As(err, &held):
			entries = l.refuseHeld(entries, held)
			continue
		case l.writer.guilty(err) && len(entries) == 1:
			l.log.Warn("the database refused a message", "room", entries[0].pub.Room, "error", err)
			l.fail(entries[0], fmt.Errorf("append: %w", message.ErrRejected), reasonRejected)
			return
		case l.writer.guilty(err):
			half := len(entries) / 2
			l.store(entries[:half])
			if slices.ContainsFunc(entries[:half], func(e *entry) bool { return !e.done }) {
				// Some of it goes back to the front of the queue. What follows
				// it goes along: a room's publications keep their order.
				return
			}
			l.store(entries[half:])
			return
		}
		if l.expire(entries) {
			return
		}
		l.backoff()
	}
}

// refuseHeld fails the entries of rooms that somebody else's transaction holds,
// and returns the others: they are not to wait for it.
func (l *lane) refuseHeld(entries []*entry, held *heldError) (others []*entry) {
	for _, e := range entries {
		if held.has(e.pub.Room) {
			l.fail(e, fmt.Errorf("append: %w", held), reasonHeld)
		} else {
			others = append(others, e)
		}
	}
	return others
}

// expire fails the entries whose time is over, and says whether there were any.
func (l *lane) expire(entries []*entry) bool {
	now, closed, over := time.Now(), l.ctx.Err() != nil, false
	for _, e := range entries {
		if closed || now.After(e.deadline) {
			l.fail(e, fmt.Errorf("append: no answer within %v: %w", l.timeout, message.ErrUnavailable), reasonTimeout)
			over = true
		}
	}
	return over
}

// attempt tries once. An attempt always gets a fifth of the timeout: were it
// cut at the deadline of the entry that waited longest, then after an outage,
// with one entry after the other running out of time, none would be long enough.
func (l *lane) attempt(entries []*entry) (message.Epoch, []result, error) {
	bound := max(time.Until(entries[0].deadline), l.timeout/5)
	ctx, cancel := context.WithTimeout(l.ctx, bound)
	defer cancel()
	began := time.Now()
	epoch, results, err := l.writer.commit(ctx, entries)
	l.m.observe("commit", began)
	var held *heldError
	switch {
	case errors.As(err, &held):
		l.note(nil) // it answered
		l.noteHeld(held)
	case err != nil && l.writer.guilty(err):
		l.note(nil)
	default:
		l.note(err)
	}
	return epoch, results, err
}

// apply writes the outcomes of a batch that was committed.
//
// When the answer to a COMMIT was lost, the next attempt finds the batch's own
// ids and reports duplicates. They are left so: the log cannot tell them from
// a publisher's resend that another node stored meanwhile, a duplicate is
// acked and broadcast like any other, and topics drop what they have seen.
func (l *lane) apply(entries []*entry, epoch message.Epoch, results []result) {
	for i, e := range entries {
		r := results[i]
		if r.duplicate && !bytes.Equal(r.digest, e.digest[:]) {
			l.fail(e, errConflict, reasonConflict)
			continue
		}
		e.done = true
		p := e.pub
		p.Epoch, p.Seq, p.At, p.Duplicate = epoch, r.seq, r.at.UTC(), r.duplicate
	}
}

var errConflict = fmt.Errorf("append: %w", message.ErrConflict)

// fail gives an entry an outcome other than being stored.
func (l *lane) fail(e *entry, err error, reason string) {
	e.pub.Err, e.done = err, true
	l.m.failed.WithLabelValues(reason).Inc()
}
