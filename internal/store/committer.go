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
	m       *metrics
	lanes   []*lane
	unit    *unit
	pending *pending // of lanes and unit together
	seed    maphash.Seed
	started atomic.Bool
}

// newCommitter makes a lane for each writer, and a unit over whole. The writers
// are closed with it.
func newCommitter(c Config, m *metrics, writers []writer, whole unitWriter) *committer {
	waiting := &pending{maxCount: int64(c.MaxPending), maxBytes: int64(c.MaxPendingBytes)}
	m.pending(&waiting.count)
	k := &committer{m: m, pending: waiting, seed: maphash.MakeSeed(), unit: newUnit(whole, c.AppendTimeout)}
	for _, w := range writers {
		l := &lane{
			log: c.Logger, m: m, pending: waiting, timeout: c.AppendTimeout, writer: w,
			wake: make(chan struct{}, 1), done: make(chan struct{}), seen: map[key]*entry{},
		}
		l.ctx, l.cancel = context.WithCancel(context.Background())
		l.lastOK.Store(time.Now().UnixNano())
		k.lanes = append(k.lanes, l)
	}
	return k
}

// Start has the log commit what is appended. It calls settled after each
// commit, once a room of the batch, in the order of seq, those that failed
// first; never twice at once for one room. What settled does delays the next
// batch of its lane. Start is called once, before the first Append.
func (k *committer) Start(settled func([]*message.Publication)) {
	if k.started.Swap(true) {
		panic("store: started twice")
	}
	for _, l := range k.lanes {
		l.settled = settled
		go l.commitLoop()
	}
}

// Append hands a publication to the log. It never blocks and never settles the
// publication from the goroutine that called it. What comes while MaxPending
// or MaxPendingBytes wait is settled at once with message.ErrUnavailable, what
// comes after Close with message.ErrClosed.
func (k *committer) Append(p *message.Publication) {
	k.lane(p.Room).append(p)
}

// lane is that of a room: the same one as long as this log is open.
func (k *committer) lane(room message.Room) *lane {
	return k.lanes[maphash.String(k.seed, string(room))%uint64(len(k.lanes))]
}

// Check returns nil while every lane wrote something, or could have, within
// the last 5 s; else it says since when not, and why.
func (k *committer) Check() error {
	for _, l := range k.lanes {
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// close refuses new publications and finishes what waits. When ctx ends first,
// what is left is settled with message.ErrUnavailable.
func (k *committer) close(ctx context.Context) error {
	var errs []error
	for _, l := range k.lanes {
		l.close()
	}
	if err := k.unit.close(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, l := range k.lanes {
		if k.started.Load() {
			select {
			case <-l.done:
			case <-ctx.Done():
				errs = append(errs, ctx.Err())
				l.cancel()
				<-l.done // bounded: every attempt and every wait ends with l.ctx
			}
		} else {
			l.writer.close()
		}
		l.cancel()
	}
	return errors.Join(errs...)
}

// hand calls settled once for each room of pubs.
func (l *lane) hand(pubs []*message.Publication) {
	if len(pubs) == 0 {
		return
	}
	l.settling.Lock()
	defer l.settling.Unlock()
	eachRoom(pubs, l.settled)
}

// errPending refuses what would wait behind too much else.
var errPending = fmt.Errorf("too much waits already: %w", message.ErrUnavailable)

// pending counts what waits in all lanes.
type pending struct {
	maxCount, maxBytes int64
	count, bytes       atomic.Int64
}

// add says whether there was room.
func (p *pending) add(n, size int) bool {
	count, bytes := p.count.Add(int64(n)), p.bytes.Add(int64(size))
	if count <= p.maxCount && bytes <= p.maxBytes {
		return true
	}
	p.remove(n, size)
	return false
}

// remove takes out what add let in, once each.
func (p *pending) remove(count, size int) {
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
