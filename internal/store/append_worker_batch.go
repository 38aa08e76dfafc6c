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

// commitBatch stores a batch and completes it, with one call of onCompleted for
// each room. If the deadline of some publications passes first, it completes
// these and returns the others to the front of the queue.
func (w *appendWorker) commitBatch(batch []*queuedPublication) {
	clear(w.seen)
	unique := make([]*queuedPublication, 0, len(batch))
	for _, q := range batch {
		k := idKey{string(q.pub.Room), q.pub.From, q.pub.ID}
		if q.original = w.seen[k]; q.original == nil {
			w.seen[k] = q
			unique = append(unique, q)
		}
		q.done = false
	}
	w.m.batch.Observe(float64(len(batch)))
	w.store(unique)
	size := 0
	var pubs []*message.Publication
	var left []*queuedPublication
	for _, q := range batch {
		if q.original != nil && q.original.done {
			w.completeDuplicate(q)
		}
		if !q.done {
			left = append(left, q)
			continue
		}
		pubs = append(pubs, q.pub)
		size += len(q.pub.Data)
	}
	w.requeue(left)
	w.pending.release(len(pubs), size)
	w.complete(pubs)
}

// completeDuplicate gives a publication the outcome of the earlier one with the
// same id in its batch.
func (w *appendWorker) completeDuplicate(q *queuedPublication) {
	first := q.original.pub
	q.done = true
	switch {
	case first.Err == nil && q.digest != q.original.digest:
		w.fail(q, errConflict, reasonConflict)
	case first.Err == nil:
		q.pub.Epoch, q.pub.Seq, q.pub.At, q.pub.Duplicate = first.Epoch, first.Seq, first.At, true
	case q.digest == q.original.digest || errors.Is(first.Err, message.ErrUnavailable):
		q.pub.Err = first.Err
	default:
		// The first publication failed because of its own data. This one has
		// other data, and may be the resend of the message that has the id.
		q.done = false
		w.store([]*queuedPublication{q})
	}
}

// store commits publications until each has its outcome, or until the deadline
// of some has passed. When the database refuses their data, it commits them in
// halves to find the ones at fault. The halves keep their order, so that the
// seqs of a room follow the order of Append.
func (w *appendWorker) store(queued []*queuedPublication) {
	for len(queued) > 0 && !w.failExpired(queued) {
		epoch, results, err := w.tryCommit(queued)
		var locked *lockedRoomsError
		var lost *lostFileError
		switch {
		case err == nil:
			w.apply(queued, epoch, results)
			return
		case errors.As(err, &lost):
			for _, q := range queued {
				w.fail(q, fmt.Errorf("append: %w", lost), reasonLostFile)
			}
			return
		case errors.As(err, &locked):
			queued = w.failLockedRooms(queued, locked)
			continue
		case w.writer.isDataError(err) && len(queued) == 1:
			w.log.Warn("the database refused a message", "room", queued[0].pub.Room, "error", err)
			w.fail(queued[0], fmt.Errorf("append: %w", message.ErrRejected), reasonRejected)
			return
		case w.writer.isDataError(err):
			half := len(queued) / 2
			w.store(queued[:half])
			if slices.ContainsFunc(queued[:half], func(q *queuedPublication) bool { return !q.done }) {
				// The rest of this half returns to the front of the queue, and
				// the other half with it: otherwise the second half would
				// overtake the first.
				return
			}
			w.store(queued[half:])
			return
		}
		if w.failExpired(queued) {
			return
		}
		w.backoff()
	}
}

// failLockedRooms fails the publications of rooms that another transaction has
// locked, and returns the others, which do not wait for that transaction.
func (w *appendWorker) failLockedRooms(queued []*queuedPublication, locked *lockedRoomsError) (others []*queuedPublication) {
	for _, q := range queued {
		if locked.has(q.pub.Room) {
			w.fail(q, fmt.Errorf("append: %w", locked), reasonLocked)
		} else {
			others = append(others, q)
		}
	}
	return others
}

// failExpired fails the publications whose deadline has passed, or all of them
// once w.ctx has ended, and reports whether there were any.
func (w *appendWorker) failExpired(queued []*queuedPublication) bool {
	now, closed, expired := time.Now(), w.ctx.Err() != nil, false
	for _, q := range queued {
		if closed || now.After(q.deadline) {
			w.fail(q, fmt.Errorf("append: no answer within %v: %w", w.timeout, message.ErrUnavailable), reasonTimeout)
			expired = true
		}
	}
	return expired
}

// tryCommit makes one attempt, which always gets at least a fifth of the
// timeout. If it ended at the deadline of the oldest publication, then after an
// outage, when one publication after the other reaches its deadline, no attempt
// would be long enough to succeed.
func (w *appendWorker) tryCommit(queued []*queuedPublication) (message.Epoch, []result, error) {
	bound := max(time.Until(queued[0].deadline), w.timeout/5)
	ctx, cancel := context.WithTimeout(w.ctx, bound)
	defer cancel()
	began := time.Now()
	epoch, results, err := w.writer.commit(ctx, queued)
	w.m.observe("commit", began)
	var locked *lockedRoomsError
	var lost *lostFileError
	switch {
	case errors.As(err, &lost): // checkFiles has logged it
	case errors.As(err, &locked):
		w.recordHealth(exchangePing, nil) // the database has answered, and committed nothing
		w.logLockedRooms(locked)
	case err != nil && w.writer.isDataError(err):
		w.recordHealth(exchangePing, nil)
	default:
		w.recordHealth(exchangeCommit, err)
	}
	return epoch, results, err
}

// apply writes the outcomes of a committed batch into its publications.
//
// When the answer to a COMMIT was lost, the next attempt reads the batch's own
// ids from the database and reports duplicates. They remain duplicates: the log
// cannot distinguish them from a publisher's resend that another node stored
// meanwhile. A duplicate is acked and broadcast like any other message, and a
// topic drops what it has delivered.
func (w *appendWorker) apply(queued []*queuedPublication, epoch message.Epoch, results []result) {
	for i, q := range queued {
		r := results[i]
		if r.duplicate && !bytes.Equal(r.digest, q.digest[:]) {
			w.fail(q, errConflict, reasonConflict)
			continue
		}
		q.done = true
		p := q.pub
		p.Epoch, p.Seq, p.At, p.Duplicate = epoch, r.seq, r.at.UTC(), r.duplicate
	}
}

var errConflict = fmt.Errorf("append: %w", message.ErrConflict)

// fail completes a publication with an error, and counts it under a reason.
func (w *appendWorker) fail(q *queuedPublication, err error, reason string) {
	q.pub.Err, q.done = err, true
	w.m.failed.WithLabelValues(reason).Inc()
}
