package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

// A atomicWriter is one dialect's connection for units. One goroutine uses it at
// a time.
type atomicWriter interface {
	// commitIf is writer.commit, except that it asks agree between the last
	// statement and COMMIT. An error of agree undoes everything and comes back
	// as it is.
	commitIf(ctx context.Context, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error)
	// guilty is that of writer.
	isDataError(err error) bool
	close()
}

// A atomicAppender is the way in for batches of which all is stored or nothing. It has a
// connection of its own: a lane could not refuse a whole batch without holding
// up the publications behind it, and one batch may touch rooms of all lanes.
// Against the lanes, the locks on the rooms keep the order, in the database's
// one order of names.
type atomicAppender struct {
	writer  atomicWriter
	timeout time.Duration // Config.AppendTimeout

	// ctx ends when waiting any longer is pointless: a Close that took too long.
	ctx    context.Context
	cancel context.CancelFunc
	slot   chan struct{} // holds one token while a batch is under way

	mu       sync.Mutex
	closing  bool
	inFlight sync.WaitGroup // calls under way; nothing is added once closing
}

// newAtomicAppender has units written by w, which is closed with it.
func newAtomicAppender(w atomicWriter, timeout time.Duration) *atomicAppender {
	a := &atomicAppender{writer: w, timeout: timeout, slot: make(chan struct{}, 1)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// errRolledBack is agree's answer when a transaction was only to be tried.
var errRolledBack = errors.New("tried and undone")

// AppendBatch stores all publications or none, in one transaction, at most 256
// of them with 1 MiB of data together, and waits for the outcome: about
// AppendTimeout at most. When it returns nil, each publication is filled in
// and settled has been called once a room, as for Append.
//
// On an error settled is not called and the publications are as they were. A
// *message.BatchError names the one at fault (message.ErrConflict or
// message.ErrRejected); after message.ErrUnavailable the outcome is unknown,
// and the same batch may be sent again; after any other error nothing was
// stored. A batch that has begun is not cut short when ctx ends: that would
// make a known outcome an unknown one.
//
// It must not be called before Start, nor from settled.
func (k *committer) AppendBatch(ctx context.Context, pubs []*message.Publication) error {
	began := time.Now()
	b, err := newAtomicBatch(pubs, began.Add(k.atomicAppender.timeout))
	if err == nil {
		err = k.appendAtomically(ctx, b)
	}
	if err != nil {
		// All of them, since none was stored.
		k.m.failed.WithLabelValues(atomicFailureReason(err)).Add(float64(len(pubs)))
		return fmt.Errorf("append a batch: %w", err)
	}
	k.m.batch.Observe(float64(len(pubs)))
	return nil
}

// appendAtomically waits for its turn, commits and settles.
func (k *committer) appendAtomically(ctx context.Context, b *atomicBatch) error {
	a := k.atomicAppender
	if !a.startCall() {
		return message.ErrClosed
	}
	defer a.inFlight.Done()
	if !k.pending.reserve(len(b.pubs), b.size) {
		return errTooManyPending
	}
	defer k.pending.release(len(b.pubs), b.size)
	ctx, cancel := context.WithDeadline(ctx, b.deadline)
	defer cancel()
	select {
	case a.slot <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("no turn in time: %w", message.ErrUnavailable)
	case <-a.ctx.Done():
		return fmt.Errorf("no turn before the end: %w", message.ErrUnavailable)
	}
	// Kept until all is settled: two units in one room are told in the order
	// of their commits.
	defer func() { <-a.slot }()
	if err := a.commit(ctx, k, b); err != nil {
		return err
	}
	k.complete(b.pubs)
	return nil
}

// complete hands stored publications over, once a room, each under the lock of
// the room's lane: settled is never called twice at once for one room.
//
// A lane may commit to the same room between the batch's commit and this call,
// and settle first: topics hold what comes early until the rest is there.
func (k *committer) complete(pubs []*message.Publication) {
	eachRoom(slices.Clone(pubs), func(room []*message.Publication) {
		w := k.workerFor(room[0].Room)
		w.completionMu.Lock()
		defer w.completionMu.Unlock()
		w.onCompleted(room)
	})
}

// startCall counts a call in, unless the log is being closed.
func (a *atomicAppender) startCall() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return false
	}
	a.inFlight.Add(1)
	return true
}

// close refuses new batches and waits for those under way, at most until ctx
// ends; what is still under way is then cut short.
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
		<-done // bounded: every attempt and every wait ends with u.ctx
	}
	a.cancel()
	a.writer.close()
	return err
}

// A atomicBatch is what one call of AppendBatch wants stored.
type atomicBatch struct {
	pubs     []*message.Publication
	size     int
	deadline time.Time
	// unique has an entry for each key; a later publication with the same key
	// and data shares it. at tells which entry a publication has.
	unique      []*queuedPublication
	uniqueIndex []int
	pubIndex    []int // which publication an entry was made from: the reverse of at
}

// newAtomicBatch holds the batch against its bounds and finds equal ids in it.
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
		e := &queuedPublication{pub: p, digest: digest(p.Data), deadline: deadline}
		k := idKey{string(p.Room), p.From, p.ID}
		n, again := seen[k]
		switch {
		case !again:
			n = len(b.unique)
			seen[k] = n
			b.unique, b.pubIndex = append(b.unique, e), append(b.pubIndex, i)
		case b.unique[n].digest != e.digest:
			return nil, &message.BatchError{Index: i, Err: message.ErrConflict}
		}
		b.uniqueIndex[i] = n
	}
	return b, nil
}

// checkConflicts refuses a batch of which an id was used before with other data.
func (b *atomicBatch) checkConflicts(results []result) error {
	for i, r := range results {
		if r.duplicate && !bytes.Equal(r.digest, b.unique[i].digest[:]) {
			return &message.BatchError{Index: b.pubIndex[i], Err: message.ErrConflict}
		}
	}
	return nil
}

// apply writes the outcome into the publications.
func (b *atomicBatch) apply(epoch message.Epoch, results []result) {
	for i, p := range b.pubs {
		r := results[b.uniqueIndex[i]]
		p.Epoch, p.Seq, p.At = epoch, r.seq, r.at.UTC()
		p.Duplicate = r.duplicate || b.pubIndex[b.uniqueIndex[i]] != i
	}
}

// commit tries until the batch is stored, refused, or out of time. Trying
// again is safe after an unknown outcome: a batch that was stored finds its own
// ids, and one that was not is stored now. In between nobody can have stored
// half of it.
func (a *atomicAppender) commit(ctx context.Context, k *committer, b *atomicBatch) error {
	for failures := 0; ; failures++ {
		epoch, results, err := a.attempt(k, b.deadline, b.unique, b.checkConflicts)
		var refused *message.BatchError
		var locked *lockedRoomsError
		switch {
		case err == nil:
			b.apply(epoch, results)
			return nil
		case errors.As(err, &refused):
			return refused
		case errors.As(err, &locked):
			return locked // to wait for somebody else's room would hold up all other batches
		}
		if a.writer.isDataError(err) {
			// When the search is cut off by an outage, it all begins anew.
			var i int
			if i, err = a.findRejected(k, b); err == nil {
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

// attempt tries once. As in a lane, an attempt gets a fifth of the timeout even
// when the deadline is nearer.
func (a *atomicAppender) attempt(k *committer, deadline time.Time, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error) {
	began := time.Now()
	defer k.m.observe("commit_batch", began)
	ctx, cancel := context.WithTimeout(a.ctx, max(time.Until(deadline), a.timeout/5))
	defer cancel()
	return a.writer.commitIf(ctx, batch, precommit)
}

// findRejected finds the entry that the database refuses: the last of the shortest
// beginning that is refused. Of the beginnings that are not, nothing is kept.
func (a *atomicAppender) findRejected(k *committer, b *atomicBatch) (int, error) {
	passes, refused := 0, len(b.unique)
	for refused-passes > 1 {
		middle := (passes + refused) / 2
		_, _, err := a.attempt(k, b.deadline, b.unique[:middle], func([]result) error { return errRolledBack })
		switch {
		case errors.Is(err, errRolledBack):
			passes = middle
		case a.writer.isDataError(err):
			refused = middle
		default:
			return 0, err
		}
	}
	return refused - 1, nil
}

// atomicFailureReason is the label of store_failed_total.
func atomicFailureReason(err error) string {
	var locked *lockedRoomsError
	if errors.As(err, &locked) {
		return reasonLocked
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

// eachRoom sorts publications by room and seq, and calls f for each room.
func eachRoom(pubs []*message.Publication, f func([]*message.Publication)) {
	slices.SortStableFunc(pubs, func(a, b *message.Publication) int {
		return cmp.Or(cmp.Compare(a.Room, b.Room), cmp.Compare(a.Seq, b.Seq))
	})
	for len(pubs) > 0 {
		n := 1
		for n < len(pubs) && pubs[n].Room == pubs[0].Room {
			n++
		}
		f(pubs[:n:n])
		pubs = pubs[n:]
	}
}
