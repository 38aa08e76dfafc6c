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

// committer is what both dialects share of the way in: the lanes, and the unit
// for batches that are stored whole or not at all.
type committer struct {
	m              *metrics
	workers        []*appendWorker
	atomicAppender *atomicAppender
	pending        *pendingQuota // of lanes and unit together
	seed           maphash.Seed
	started        atomic.Bool
}

// newCommitter makes a lane for each writer, and a unit over whole. The writers
// are closed with it.
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

// Start has the log commit what is appended. It calls settled after each
// commit, once a room of the batch, in the order of seq, those that failed
// first; never twice at once for one room. What settled does delays the next
// batch of its lane. Start is called once, before the first Append.
func (k *committer) Start(onCompleted func([]*message.Publication)) {
	if k.started.Swap(true) {
		panic("store: started twice")
	}
	for _, w := range k.workers {
		w.onCompleted = onCompleted
		go w.commitLoop()
	}
}

// Append hands a publication to the log. It never blocks and never settles the
// publication from the goroutine that called it. What comes while MaxPending
// or MaxPendingBytes wait is settled at once with message.ErrUnavailable, what
// comes after Close with message.ErrClosed.
func (k *committer) Append(p *message.Publication) {
	k.workerFor(p.Room).append(p)
}

// workerFor is that of a room: the same one as long as this log is open.
func (k *committer) workerFor(room message.Room) *appendWorker {
	return k.workers[maphash.String(k.seed, string(room))%uint64(len(k.workers))]
}

// Check returns nil while every lane wrote something, or could have, within
// the last 5 s; else it says since when not, and why.
func (k *committer) Check() error {
	for _, w := range k.workers {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

// close refuses new publications and finishes what waits. When ctx ends first,
// what is left is settled with message.ErrUnavailable.
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
				<-w.done // bounded: every attempt and every wait ends with l.ctx
			}
		} else {
			w.writer.close()
		}
		w.cancel()
	}
	return errors.Join(errs...)
}

// complete calls settled once for each room of pubs.
func (w *appendWorker) complete(pubs []*message.Publication) {
	if len(pubs) == 0 {
		return
	}
	w.completionMu.Lock()
	defer w.completionMu.Unlock()
	eachRoom(pubs, w.onCompleted)
}

// errTooManyPending refuses what would wait behind too much else.
var errTooManyPending = fmt.Errorf("too much waits already: %w", message.ErrUnavailable)

// pendingQuota counts what waits in all lanes.
type pendingQuota struct {
	maxCount, maxBytes int64
	count, bytes       atomic.Int64
}

// reserve says whether there was room.
func (p *pendingQuota) reserve(n, size int) bool {
	count, bytes := p.count.Add(int64(n)), p.bytes.Add(int64(size))
	if count <= p.maxCount && bytes <= p.maxBytes {
		return true
	}
	p.release(n, size)
	return false
}

// release takes out what add let in, once each.
func (p *pendingQuota) release(count, size int) {
	p.count.Add(-int64(count))
	p.bytes.Add(-int64(size))
}

// digestSize is enough to tell other data from the same: 128 bits.
const digestSize = 16

// digest is what is remembered of data to tell a resend from a conflict.
func digest(data []byte) [digestSize]byte {
	sum := sha256.Sum256(data)
	return [digestSize]byte(sum[:digestSize])
}
