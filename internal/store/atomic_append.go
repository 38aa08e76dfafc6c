package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"switchyard/internal/message"
)

// An atomicWriter is one dialect's connection for atomic batches. One goroutine
// at a time uses it.
type atomicWriter interface {
	// commitIf is writer.commit, except that it calls precommit between the
	// last statement and COMMIT. If precommit returns an error, the
	// transaction is rolled back and commitIf returns that error unchanged.
	commitIf(ctx context.Context, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error)
	// isDataError is that of writer.
	isDataError(err error) bool
	close()
}

// An atomicAppender stores atomic batches, of which all publications are stored
// or none. It has a connection of its own: an append worker could not refuse a
// whole batch without delaying the publications behind it, and one batch may
// touch rooms of all workers. Both lock rooms in the order of their names, so
// they never deadlock and each room is written by one of them at a time.
type atomicAppender struct {
	writer  atomicWriter
	timeout time.Duration // Config.AppendTimeout

	// ctx ends when a Close has run out of time: every attempt and every wait
	// then ends.
	ctx    context.Context
	cancel context.CancelFunc
	slot   chan struct{} // holds one token while a batch is under way

	// mu protects closing.
	mu       sync.Mutex
	closing  bool
	inFlight sync.WaitGroup // calls of AppendBatch under way; none is added once closing is set
}

// newAtomicAppender returns an appender that owns w: close closes it.
func newAtomicAppender(w atomicWriter, timeout time.Duration) *atomicAppender {
	a := &atomicAppender{writer: w, timeout: timeout, slot: make(chan struct{}, 1)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// errRolledBack is what precommit returns to roll back a transaction that was
// only a trial.
var errRolledBack = errors.New("tried and rolled back")

// AppendBatch stores all publications or none, in one transaction, and waits
// for the outcome, for about AppendTimeout at most. A batch has at most 256
// publications, with 1 MiB of data together. When AppendBatch returns nil, each
// publication has its outcome, and onCompleted has been called once for each
// room, as for Append.
//
// When it returns an error, onCompleted is not called and the publications are
// unchanged. A *message.BatchError names the publication at fault
// (message.ErrConflict or message.ErrRejected). After message.ErrUnavailable
// the outcome is unknown, and the same batch may be sent again. After any other
// error nothing was stored. An attempt under way is not cut short when ctx
// ends: that would turn a known outcome into an unknown one.
//
// It must not be called before Start, nor from onCompleted.
func (c *committer) AppendBatch(ctx context.Context, pubs []*message.Publication) error {
	began := time.Now()
	b, err := newAtomicBatch(pubs, began.Add(c.atomicAppender.timeout))
	if err == nil {
		err = c.appendAtomically(ctx, b)
	}
	if err != nil {
		// All publications count, because none was stored.
		c.m.failed.WithLabelValues(atomicFailureReason(err)).Add(float64(len(pubs)))
		return fmt.Errorf("append a batch: %w", err)
	}
	c.m.batch.Observe(float64(len(pubs)))
	return nil
}

// appendAtomically waits for the slot, commits the batch and completes it.
func (c *committer) appendAtomically(ctx context.Context, b *atomicBatch) error {
	a := c.atomicAppender
	if !a.startCall() {
		return message.ErrClosed
	}
	defer a.inFlight.Done()
	if !c.pending.reserve(len(b.pubs), b.size) {
		return errTooManyPending
	}
	defer c.pending.release(len(b.pubs), b.size)
	ctx, cancel := context.WithDeadline(ctx, b.deadline)
	defer cancel()
	select {
	case a.slot <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("other batches took too long: %w", message.ErrUnavailable)
	case <-a.ctx.Done():
		return fmt.Errorf("the log was closed before the batch began: %w", message.ErrUnavailable)
	}
	// Kept until the batch is completed, so that two batches in one room are
	// completed in the order of their commits.
	defer func() { <-a.slot }()
	if err := a.commitWithRetry(ctx, c, b); err != nil {
		return err
	}
	c.completeAtomic(b.pubs)
	return nil
}

// startCall adds a call to inFlight, unless the log is being closed.
func (a *atomicAppender) startCall() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return false
	}
	a.inFlight.Add(1)
	return true
}

// close refuses new batches and waits for those under way. When ctx ends first,
// it cuts them short.
func (a *atomicAppender) close(ctx context.Context) error {
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	done := make(chan struct{})
	go func() {
		a.inFlight.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		a.cancel()
		<-done // bounded: every attempt and every wait ends with a.ctx
	}
	a.cancel()
	a.writer.close()
	return err
}

// An atomicBatch is the batch of one call of AppendBatch.
type atomicBatch struct {
	pubs     []*message.Publication
	size     int // of the data, in bytes
	deadline time.Time
	// unique has one entry for each idKey. A later publication with the same
	// key and data shares that entry.
	unique      []*queuedPublication
	uniqueIndex []int // by index in pubs: the publication's entry in unique
	pubIndex    []int // by index in unique: the first publication of that entry
}

// newAtomicBatch checks a batch against its bounds and merges publications that
// repeat an id.
func newAtomicBatch(pubs []*message.Publication, deadline time.Time) (*atomicBatch, error) {
	b := &atomicBatch{pubs: pubs, deadline: deadline, uniqueIndex: make([]int, len(pubs))}
	if len(pubs) == 0 || len(pubs) > batchMessages {
		return nil, &message.InvalidError{Field: "messages", Reason: fmt.Sprintf("must be 1 to %d", batchMessages)}
	}
	seen := make(map[idKey]int, len(pubs))
	for i, p := range pubs {
		if b.size += len(p.Data); b.size > batchBytes {
			return nil, &message.InvalidError{Field: "messages", Reason: fmt.Sprintf("must hold at most %d bytes of data together", batchBytes)}
		}
		q := &queuedPublication{pub: p, digest: digest(p.Data), deadline: deadline}
		k := idKey{string(p.Room), p.From, p.ID}
		n, again := seen[k]
		switch {
		case !again:
			n = len(b.unique)
			seen[k] = n
			b.unique, b.pubIndex = append(b.unique, q), append(b.pubIndex, i)
		case b.unique[n].digest != q.digest:
			return nil, &message.BatchError{Index: i, Err: message.ErrConflict}
		}
		b.uniqueIndex[i] = n
	}
	return b, nil
}

// checkConflicts returns a *message.BatchError when an id of the batch was used
// before with other data.
func (b *atomicBatch) checkConflicts(results []result) error {
	for i, r := range results {
		if r.duplicate && !bytes.Equal(r.digest, b.unique[i].digest[:]) {
			return &message.BatchError{Index: b.pubIndex[i], Err: message.ErrConflict}
		}
	}
	return nil
}

// apply writes the outcome of a stored batch into its publications.
func (b *atomicBatch) apply(epoch message.Epoch, results []result) {
	for i, p := range b.pubs {
		r := results[b.uniqueIndex[i]]
		p.Epoch, p.Seq, p.At = epoch, r.seq, r.at.UTC()
		p.Duplicate = r.duplicate || b.pubIndex[b.uniqueIndex[i]] != i
	}
}

// commitWithRetry tries until the batch is stored, refused, or out of time. A
// retry is safe after an unknown outcome: if the batch was stored, its ids are
// duplicates; if not, it is stored now. Half a batch cannot have been stored.
func (a *atomicAppender) commitWithRetry(ctx context.Context, c *committer, b *atomicBatch) error {
	for failures := 0; ; failures++ {
		epoch, results, err := a.tryCommitIf(c, b.deadline, b.unique, b.checkConflicts)
		var refused *message.BatchError
		var locked *lockedRoomsError
		var lost *lostFileError
		switch {
		case err == nil:
			b.apply(epoch, results)
			return nil
		case errors.As(err, &refused):
			return refused
		case errors.As(err, &locked):
			return locked // waiting for a locked room would delay all other batches
		case errors.As(err, &lost):
			return lost // only the operator can put a file back
		}
		if a.writer.isDataError(err) {
			// If the search itself fails, the database is down: try the whole batch
			// again.
			var i int
			if i, err = a.findRejected(c, b); err == nil {
				return &message.BatchError{Index: b.pubIndex[i], Err: message.ErrRejected}
			}
		}
		pause := min(5*time.Millisecond<<min(failures, 10), a.timeout/20)
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
		case <-a.ctx.Done():
		}
		if ctx.Err() != nil || a.ctx.Err() != nil {
			return fmt.Errorf("%w: %w", message.ErrUnavailable, err)
		}
	}
}

// tryCommitIf makes one attempt. Like an append worker's, it gets a fifth of
// the timeout even when the deadline is nearer.
func (a *atomicAppender) tryCommitIf(c *committer, deadline time.Time, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error) {
	began := time.Now()
	defer c.m.observe("commit_batch", began)
	ctx, cancel := context.WithTimeout(a.ctx, max(time.Until(deadline), a.timeout/5))
	defer cancel()
	return a.writer.commitIf(ctx, batch, precommit)
}

// findRejected returns the index of the entry that the database refuses, by
// binary search for the shortest prefix that it refuses. A prefix that it
// accepts is rolled back.
func (a *atomicAppender) findRejected(c *committer, b *atomicBatch) (int, error) {
	accepted, refused := 0, len(b.unique)
	for refused-accepted > 1 {
		middle := (accepted + refused) / 2
		_, _, err := a.tryCommitIf(c, b.deadline, b.unique[:middle], func([]result) error { return errRolledBack })
		switch {
		case errors.Is(err, errRolledBack):
			accepted = middle
		case a.writer.isDataError(err):
			refused = middle
		default:
			return 0, err
		}
	}
	return refused - 1, nil
}

// atomicFailureReason returns the reason under which store_failed_total counts
// a failed batch.
func atomicFailureReason(err error) string {
	var locked *lockedRoomsError
	if errors.As(err, &locked) {
		return reasonLocked
	}
	var lost *lostFileError
	if errors.As(err, &lost) {
		return reasonLostFile
	}
	for _, c := range []struct {
		err    error
		reason string
	}{
		{message.ErrConflict, reasonConflict}, {message.ErrRejected, reasonRejected}, {errTooManyPending, reasonPending},
		{message.ErrClosed, reasonClosed}, {message.ErrUnavailable, reasonTimeout},
	} {
		if errors.Is(err, c.err) {
			return c.reason
		}
	}
	return reasonInvalid
}
