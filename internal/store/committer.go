package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
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
func newCommitter(c Config, m *metrics, writers []writer, batchWriter atomicWriter) *committer {
	quota := &pendingQuota{maxCount: int64(c.MaxPending), maxBytes: int64(c.MaxPendingBytes)}
	m.pending(&quota.count)
	k := &committer{m: m, pending: quota, seed: maphash.MakeSeed(), atomicAppender: newAtomicAppender(batchWriter, c.AppendTimeout)}
	for _, bw := range writers {
		w := &appendWorker{
			log: c.Logger, m: m, pending: quota, timeout: c.AppendTimeout, writer: bw,
			wake: make(chan struct{}, 1), done: make(chan struct{}), seen: map[idKey]*queuedPublication{},
		}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.lastOK.Store(time.Now().UnixNano())
		k.workers = append(k.workers, w)
	}
	return k
}

// Start begins to commit what is appended. It is called once, before the first
// Append. After each commit the log calls onCompleted once for each room of the
// batch, with the room's publications in the order of their seqs, failed ones
// first. Calls for one room never overlap. While onCompleted runs, the room's
// append worker commits nothing, so it must not block.
func (k *committer) Start(onCompleted func([]*message.Publication)) {
	if k.started.Swap(true) {
		panic("store: started twice")
	}
	for _, w := range k.workers {
		w.onCompleted = onCompleted
		go w.commitLoop()
	}
}

// Append hands a publication to the log. It never blocks, and onCompleted never
// runs on the goroutine that called Append. Beyond MaxPending or
// MaxPendingBytes the publication fails at once with message.ErrUnavailable,
// and after Close with message.ErrClosed.
func (k *committer) Append(p *message.Publication) {
	k.workerFor(p.Room).append(p)
}

// workerFor returns a room's append worker: the same one as long as this log is
// open, so that the room's publications keep their order.
func (k *committer) workerFor(room message.Room) *appendWorker {
	return k.workers[maphash.String(k.seed, string(room))%uint64(len(k.workers))]
}

// Check returns nil if every append worker has reached the database within the
// last 5 s. Otherwise its error says for how long not, and why.
func (k *committer) Check() error {
	for _, w := range k.workers {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

// close refuses new publications and commits the pending ones. When ctx ends
// first, the rest fails with message.ErrUnavailable.
func (k *committer) close(ctx context.Context) error {
	var errs []error
	for _, w := range k.workers {
		w.close()
	}
	if err := k.atomicAppender.close(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, w := range k.workers {
		if k.started.Load() {
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

// complete calls onCompleted once for each room of pubs.
func (w *appendWorker) complete(pubs []*message.Publication) {
	if len(pubs) == 0 {
		return
	}
	w.completionMu.Lock()
	defer w.completionMu.Unlock()
	eachRoom(pubs, w.onCompleted)
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
