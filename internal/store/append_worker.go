package store

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
)

// A writer is one dialect's connection of one lane. Only the lane's goroutine
// uses it.
type writer interface {
	// commit stores a batch in one transaction, or nothing of it. No two of
	// the batch share room, sender and id. It returns after COMMIT was
	// answered; the results are in the order of the batch. After an error
	// that is not guilty the outcome is unknown.
	commit(ctx context.Context, batch []*queuedPublication) (message.Epoch, []result, error)
	// ping asks whether a commit could succeed now.
	ping(ctx context.Context) error
	// guilty says whether the error lies in what the batch holds: nothing was
	// stored then, and trying the same again will not help.
	isDataError(err error) bool
	close()
}

// A result is what the database says of one entry of a batch.
type result struct {
	seq       message.Seq
	at        time.Time
	duplicate bool
	digest    []byte // of the data stored first, when duplicate
}

// An queuedPublication is a publication in a lane.
type queuedPublication struct {
	pub      *message.Publication
	digest   [digestSize]byte
	deadline time.Time
	original *queuedPublication // the one of the same id earlier in the batch, or nil
	done     bool               // the outcome is in pub
}

// idKey is what an id is unique for.
type idKey struct{ room, from, id string }

// A appendWorker commits the publications of its share of the rooms, one batch at a
// time, in the order they were appended.
type appendWorker struct {
	log         *slog.Logger
	m           *metrics
	pending     *pendingQuota
	timeout     time.Duration // Config.AppendTimeout
	onCompleted func([]*message.Publication)

	// ctx ends when waiting any longer is pointless: a Close that took too long.
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token
	done   chan struct{} // closed by commitLoop

	// Owned by commitLoop.
	writer              writer
	seen                map[idKey]*queuedPublication
	down                bool      // for one log line an outage, not one an attempt
	failures            int       // in a row
	lockedRoomsLoggedAt time.Time // when held rooms were last in the log

	lastOK  atomic.Int64 // UnixNano of the last answer of the database
	lastErr atomic.Pointer[error]

	completionMu sync.Mutex // one call of settled at a time

	mu       sync.Mutex
	queue    []*queuedPublication
	closing  bool
	refused  []*message.Publication
	refusing bool // refuseLoop runs
}

// append queues a publication, or refuses it. It never blocks for longer than
// another append or the taking of a batch does.
func (w *appendWorker) append(p *message.Publication) {
	e := &queuedPublication{pub: p, digest: digest(p.Data), deadline: time.Now().Add(w.timeout)}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closing:
		w.refuse(p, fmt.Errorf("append: %w", message.ErrClosed), reasonClosed)
	case !w.pending.reserve(1, len(p.Data)):
		w.refuse(p, fmt.Errorf("append: %w", errTooManyPending), reasonPending)
	default:
		w.queue = append(w.queue, e)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// refuse is called with mu held. The caller of append must not be called back
// by its own call, and the lane may be waiting for the database: hence a
// goroutine of its own, alive while there is something to refuse. The list has
// no bound of its own: each publication in it has an appender that waits for it.
func (w *appendWorker) refuse(p *message.Publication, err error, reason string) {
	p.Err = err
	w.m.failed.WithLabelValues(reason).Inc()
	w.refused = append(w.refused, p)
	if !w.refusing {
		w.refusing = true
		go w.refuseLoop()
	}
}

// refuseLoop settles what was refused and ends when there is no more.
func (w *appendWorker) refuseLoop() {
	for {
		w.mu.Lock()
		pubs := w.refused
		w.refused = nil
		w.refusing = len(pubs) > 0
		w.mu.Unlock()
		if len(pubs) == 0 {
			return
		}
		w.complete(pubs)
	}
}

// close refuses what comes from now on. The loop finishes what waits.
func (w *appendWorker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing = true
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// commitLoop commits one batch after the other until the lane is closed and
// empty. It alone touches the writer.
func (w *appendWorker) commitLoop() {
	defer close(w.done)
	defer w.writer.close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		if batch := w.dequeueBatch(); len(batch) > 0 {
			w.commit(batch)
			continue
		}
		if w.finished() {
			return
		}
		select {
		case <-w.wake:
		case <-w.ctx.Done():
		case <-tick.C:
			w.ping()
		}
	}
}

// finished says whether the loop has nothing to do any more.
func (w *appendWorker) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closing && len(w.queue) == 0
}

// dequeueBatch removes the next batch from the queue.
func (w *appendWorker) dequeueBatch() []*queuedPublication {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, size := 0, 0
	for n < len(w.queue) && n < batchMessages {
		size += len(w.queue[n].pub.Data)
		if n > 0 && size > batchBytes {
			break
		}
		n++
	}
	batch := append([]*queuedPublication(nil), w.queue[:n]...)
	clear(w.queue[:n]) // what is settled must not be kept alive from here
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	return batch
}

// requeue returns entries to the front of the queue.
func (w *appendWorker) requeue(queued []*queuedPublication) {
	if len(queued) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(queued, w.queue...)
}

// ping keeps Check honest while nothing is published, and finds a database
// that was restored meanwhile. A lane that commits needs none.
func (w *appendWorker) ping() {
	if time.Since(time.Unix(0, w.lastOK.Load())) < pingEvery {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx, w.timeout/5)
	defer cancel()
	began := time.Now()
	err := w.writer.ping(ctx)
	w.m.observe("ping", began)
	w.recordHealth(err)
}

// recordHealth remembers how the last exchange with the database went.
func (w *appendWorker) recordHealth(err error) {
	switch {
	case err == nil:
		w.lastOK.Store(time.Now().UnixNano())
		w.lastErr.Store(nil)
		w.failures = 0
		if w.down {
			w.log.Info("the log can be written again")
		}
	case w.ctx.Err() != nil: // closed meanwhile: nobody's fault
		return
	default:
		w.lastErr.Store(&err)
		w.failures++
		if !w.down {
			w.log.Warn("the log cannot be written; trying on", "error", err)
		}
	}
	w.down = err != nil
}

// logLockedRooms tells the operator of rooms that somebody holds, from time to time.
func (w *appendWorker) logLockedRooms(locked *lockedRoomsError) {
	if time.Since(w.lockedRoomsLoggedAt) < lockedRetryMax {
		return
	}
	w.lockedRoomsLoggedAt = time.Now()
	w.log.Warn("rooms can't be written", "rooms", len(locked.rooms), "error", locked)
}

// check says what is wrong, in words for an operator.
func (w *appendWorker) check() error {
	age := time.Since(time.Unix(0, w.lastOK.Load()))
	if age <= staleAfter {
		return nil
	}
	if err := w.lastErr.Load(); err != nil {
		return fmt.Errorf("the log could not be written for %v: %w", age.Round(time.Second), *err)
	}
	return fmt.Errorf("the log has not answered for %v", age.Round(time.Second))
}

// backoff waits 5 ms after the first failure, doubled at each further one up
// to a twentieth of the timeout, half of it random.
func (w *appendWorker) backoff() {
	d := min(5*time.Millisecond<<min(w.failures, 10), w.timeout/20)
	select {
	case <-time.After(d/2 + rand.N(d/2+1)):
	case <-w.ctx.Done():
	}
}
