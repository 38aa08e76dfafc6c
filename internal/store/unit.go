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

// A unitWriter is one dialect's connection for units. One goroutine uses it at
// a time.
type unitWriter interface {
	// commitIf is writer.commit, except that it asks agree between the last
	// statement and COMMIT. An error of agree undoes everything and comes back
	// as it is.
	commitIf(ctx context.Context, batch []*entry, agree func([]result) error) (message.Epoch, []result, error)
	// guilty is that of writer.
	guilty(err error) bool
	close()
}

// A unit is the way in for batches of which all is stored or nothing. It has a
// connection of its own: a lane could not refuse a whole batch without holding
// up the publications behind it, and one batch may touch rooms of all lanes.
// Against the lanes, the locks on the rooms keep the order, in the database's
// one order of names.
type unit struct {
	writer  unitWriter
	timeout time.Duration // Config.AppendTimeout

	// ctx ends when waiting any longer is pointless: a Close that took too long.
	ctx    context.Context
	cancel context.CancelFunc
	turn   chan struct{} // holds one token while a batch is under way

	mu      sync.Mutex
	closing bool
	under   sync.WaitGroup // calls under way; nothing is added once closing
}

// newUnit has units written by w, which is closed with it.
func newUnit(w unitWriter, timeout time.Duration) *unit {
	u := &unit{writer: w, timeout: timeout, turn: make(chan struct{}, 1)}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u
}

// errUndone is agree's answer when a transaction was only to be tried.
var errUndone = errors.New("tried and undone")

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
	b, err := newUnitBatch(pubs, began.Add(k.unit.timeout))
	if err == nil {
		err = k.unitTurn(ctx, b)
	}
	if err != nil {
		// All of them, since none was stored.
		k.m.failed.WithLabelValues(unitReason(err)).Add(float64(len(pubs)))
		return fmt.Errorf("append a batch: %w", err)
	}
	k.m.batch.Observe(float64(len(pubs)))
	return nil
}

// unitTurn waits for its turn, commits and settles.
func (k *committer) unitTurn(ctx context.Context, b *unitBatch) error {
	u := k.unit
	if !u.enter() {
		return message.ErrClosed
	}
	defer u.under.Done()
	if !k.pending.add(len(b.pubs), b.size) {
		return errPending
	}
	defer k.pending.remove(len(b.pubs), b.size)
	ctx, cancel := context.WithDeadline(ctx, b.deadline)
	defer cancel()
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("no turn in time: %w", message.ErrUnavailable)
	case <-u.ctx.Done():
		return fmt.Errorf("no turn before the end: %w", message.ErrUnavailable)
	}
	// Kept until all is settled: two units in one room are told in the order
	// of their commits.
	defer func() { <-u.turn }()
	if err := u.commit(ctx, k, b); err != nil {
		return err
	}
	k.settle(b.pubs)
	return nil
}

// settle hands stored publications over, once a room, each under the lock of
// the room's lane: settled is never called twice at once for one room.
//
// A lane may commit to the same room between the batch's commit and this call,
// and settle first: topics hold what comes early until the rest is there.
func (k *committer) settle(pubs []*message.Publication) {
	eachRoom(slices.Clone(pubs), func(room []*message.Publication) {
		l := k.lane(room[0].Room)
		l.settling.Lock()
		defer l.settling.Unlock()
		l.settled(room)
	})
}

// enter counts a call in, unless the log is being closed.
func (u *unit) enter() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closing {
		return false
	}
	u.under.Add(1)
	return true
}

// close refuses new batches and waits for those under way, at most until ctx
// ends; what is still under way is then cut short.
func (u *unit) close(ctx context.Context) error {
	u.mu.Lock()
	u.closing = true
	u.mu.Unlock()
	done := make(chan struct{})
	go func() {
		u.under.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		u.cancel()
		<-done // bounded: every attempt and every wait ends with u.ctx
	}
	u.cancel()
	u.writer.close()
	return err
}

// A unitBatch is what one call of AppendBatch wants stored.
type unitBatch struct {
	pubs     []*message.Publication
	size     int
	deadline time.Time
	// unique has an entry for each key; a later publication with the same key
	// and data shares it. at tells which entry a publication has.
	unique []*entry
	at     []int
	owner  []int // which publication an entry was made from: the reverse of at
}

// newUnitBatch holds the batch against its bounds and finds equal ids in it.
func newUnitBatch(pubs []*message.Publication, deadline time.Time) (*unitBatch, error) {
	b := &unitBatch{pubs: pubs, deadline: deadline, at: make([]int, len(pubs))}
	if len(pubs) == 0 || len(pubs) > batchMessages {
		return nil, &message.InvalidError{Field: "messages", Reason: fmt.Sprintf("must be 1 to %d", batchMessages)}
	}
	seen := make(map[key]int, len(pubs))
	for i, p := range pubs {
		if b.size += len(p.Data); b.size > batchBytes {
			return nil, &message.InvalidError{Field: "messages", Reason: fmt.Sprintf("must hold at most %d bytes of data together", batchBytes)}
		}
		e := &entry{pub: p, digest: digest(p.Data), deadline: deadline}
		k := key{string(p.Room), p.From, p.ID}
		n, again := seen[k]
		switch {
		case !again:
			n = len(b.unique)
			seen[k] = n
			b.unique, b.owner = append(b.unique, e), append(b.owner, i)
		case b.unique[n].digest != e.digest:
			return nil, &message.BatchError{Index: i, Err: message.ErrConflict}
		}
		b.at[i] = n
	}
	return b, nil
}

// agree refuses a batch of which an id was used before with other data.
func (b *unitBatch) agree(results []result) error {
	for i, r := range results {
		if r.duplicate && !bytes.Equal(r.digest, b.unique[i].digest[:]) {
			return &message.BatchError{Index: b.owner[i], Err: message.ErrConflict}
		}
	}
	return nil
}

// apply writes the outcome into the publications.
func (b *unitBatch) apply(epoch message.Epoch, results []result) {
	for i, p := range b.pubs {
		r := results[b.at[i]]
		p.Epoch, p.Seq, p.At = epoch, r.seq, r.at.UTC()
		p.Duplicate = r.duplicate || b.owner[b.at[i]] != i
	}
}

// commit tries until the batch is stored, refused, or out of time. Trying
// again is safe after an unknown outcome: a batch that was stored finds its own
// ids, and one that was not is stored now. In between nobody can have stored
// half of it.
func (u *unit) commit(ctx context.Context, k *committer, b *unitBatch) error {
	for failures := 0; ; failures++ {
		epoch, results, err := u.attempt(k, b.deadline, b.unique, b.agree)
		var refused *message.BatchError
		var held *heldError
		switch {
		case err == nil:
			b.apply(epoch, results)
			return nil
		case errors.As(err, &refused):
			return refused
		case errors.As(err, &held):
			return held // to wait for somebody else's room would hold up all other batches
		}
		if u.writer.guilty(err) {
			// When the search is cut off by an outage, it all begins anew.
			var i int
			if i, err = u.blame(k, b); err == nil {
				return &message.BatchError{Index: b.owner[i], Err: message.ErrRejected}
			}
		}
		pause := min(5*time.Millisecond<<min(failures, 10), u.timeout/20)
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
		case <-u.ctx.Done():
		}
		if ctx.Err() != nil || u.ctx.Err() != nil {
			return fmt.Errorf("%w: %w", message.ErrUnavailable, err)
		}
	}
}

// attempt tries once. As in a lane, an attempt gets a fifth of the timeout even
// when the deadline is nearer.
func (u *unit) attempt(k *committer, deadline time.Time, entries []*entry, agree func([]result) error) (message.Epoch, []result, error) {
	began := time.Now()
	defer k.m.observe("commit_batch", began)
	ctx, cancel := context.WithTimeout(u.ctx, max(time.Until(deadline), u.timeout/5))
	defer cancel()
	return u.writer.commitIf(ctx, entries, agree)
}

// blame finds the entry that the database refuses: the last of the shortest
// beginning that is refused. Of the beginnings that are not, nothing is kept.
func (u *unit) blame(k *committer, b *unitBatch) (int, error) {
	passes, refused := 0, len(b.unique)
	for refused-passes > 1 {
		middle := (passes + refused) / 2
		_, _, err := u.attempt(k, b.deadline, b.unique[:middle], func([]result) error { return errUndone })
		switch {
		case errors.Is(err, errUndone):
			passes = middle
		case u.writer.guilty(err):
			refused = middle
		default:
			return 0, err
		}
	}
	return refused - 1, nil
}

// unitReason is the label of store_failed_total.
func unitReason(err error) string {
	var held *heldError
	if errors.As(err, &held) {
		return reasonHeld
	}
	for _, c := range []struct {
		err    error
		reason string
	}{
		{message.ErrConflict, reasonConflict}, {message.ErrRejected, reasonRejected}, {errPending, reasonPending},
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
