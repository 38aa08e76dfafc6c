package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
)

// A committer is the write path that both dialects share: the append workers,
// and the appender of atomic batches.
type committer struct {
	m              *metrics
	workers        []*appendWorker
	atomicAppender *atomicAppender
	pending        *pendingQuota // shared by the workers and the appender
	seed           maphash.Seed  // spreads rooms over workers
	started        atomic.Bool
}

// newCommitter returns a committer with an append worker for each writer, and
// an atomic appender over batchWriter. It closes them all when it is closed.
func newCommitter(cfg Config, m *metrics, writers []writer, batchWriter atomicWriter) *committer {
	quota := &pendingQuota{maxCount: int64(cfg.MaxPending), maxBytes: int64(cfg.MaxPendingBytes)}
	m.pending(&quota.count)
	c := &committer{m: m, pending: quota, seed: maphash.MakeSeed(), atomicAppender: newAtomicAppender(batchWriter, cfg.AppendTimeout)}
	out := &outage{log: cfg.Logger, down: map[*appendWorker]exchange{}}
	for _, bw := range writers {
		w := &appendWorker{
			log: cfg.Logger, m: m, pending: quota, outage: out, timeout: cfg.AppendTimeout, pingTimeout: cfg.pingTimeout, writer: bw,
			wake: make(chan struct{}, 1), done: make(chan struct{}), seen: map[idKey]*queuedPublication{},
		}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.lastOK.Store(time.Now().UnixNano())
		c.workers = append(c.workers, w)
	}
	return c
}

// Start begins to commit what is appended. It is called once, before the first
// Append. After each commit the log calls onCompleted once for each room of the
// batch, with the room's publications in the order of their seqs, failed ones
// first. Calls for one room never overlap. While onCompleted runs, the room's
// append worker commits nothing, so it must not block.
func (c *committer) Start(onCompleted func([]*message.Publication)) {
	if c.started.Swap(true) {
		panic("store: started twice")
	}
	for _, w := range c.workers {
		w.onCompleted = onCompleted
		go w.commitLoop()
	}
}

// Append hands a publication to the log. It never blocks, and onCompleted never
// runs on the goroutine that called Append. Beyond MaxPending or
// MaxPendingBytes the publication fails at once with message.ErrUnavailable,
// and after Close with message.ErrClosed.
func (c *committer) Append(p *message.Publication) {
	c.workerFor(p.Room).append(p)
}

// workerFor returns a room's append worker: the same one as long as this log is
// open, so that the room's publications keep their order.
func (c *committer) workerFor(room message.Room) *appendWorker {
	return c.workers[maphash.String(c.seed, string(room))%uint64(len(c.workers))]
}

// Check returns nil if every append worker has reached the database within the
// last 5 s. Otherwise its error says since when it could not, and why.
func (c *committer) Check() error {
	for _, w := range c.workers {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

// close refuses new publications and commits the pending ones. When ctx ends
// first, the rest fails with message.ErrUnavailable.
func (c *committer) close(ctx context.Context) error {
	var errs []error
	for _, w := range c.workers {
		w.close()
	}
	if err := c.atomicAppender.close(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, w := range c.workers {
		if c.started.Load() {
			select {
			case <-w.done:
			case <-ctx.Done():
				errs = append(errs, ctx.Err())
				w.cancel()
				<-w.done // bounded: every attempt and every wait ends with w.ctx
			}
		} else {
			w.writer.close()
		}
		w.cancel()
	}
	return errors.Join(errs...)
}

// completeAtomic calls onCompleted once for each room of a stored batch, under the
// lock of the room's append worker, so that calls for one room never overlap.
//
// The worker may commit to the same room between the batch's commit and this
// call, and complete its own publications first. A topic's reorder buffer keeps
// these until the batch's messages arrive.
func (c *committer) completeAtomic(pubs []*message.Publication) {
	eachRoom(slices.Clone(pubs), func(room []*message.Publication) {
		w := c.workerFor(room[0].Room)
		w.completionMu.Lock()
		defer w.completionMu.Unlock()
		w.onCompleted(room)
	})
}

// eachRoom sorts pubs by room and seq, and calls f with each room's part.
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

// errTooManyPending is the error of a publication beyond the pending quota.
var errTooManyPending = fmt.Errorf("too many publications are pending: %w", message.ErrUnavailable)

// A pendingQuota bounds the publications that wait for their commit, and their
// data in bytes. It is safe for concurrent use.
type pendingQuota struct {
	maxCount, maxBytes int64
	count, bytes       atomic.Int64
}

// reserve adds n publications with size bytes of data, and reports whether they
// fit. If not, nothing is reserved.
func (p *pendingQuota) reserve(n, size int) bool {
	count, bytes := p.count.Add(int64(n)), p.bytes.Add(int64(size))
	if count <= p.maxCount && bytes <= p.maxBytes {
		return true
	}
	p.release(n, size)
	return false
}

// release returns what reserve has reserved.
func (p *pendingQuota) release(count, size int) {
	p.count.Add(-int64(count))
	p.bytes.Add(-int64(size))
}

// digestSize is in bytes: 128 bits are enough to recognize other data.
const digestSize = 16

// digest returns the part of a SHA-256 that is stored beside an id, to
// distinguish a resend from a conflict.
func digest(data []byte) [digestSize]byte {
	sum := sha256.Sum256(data)
	return [digestSize]byte(sum[:digestSize])
}
