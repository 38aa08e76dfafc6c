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

// A writer is an append worker's connection to one dialect of database. Only
// the worker's goroutine uses it.
type writer interface {
	// commit stores a whole batch in one transaction, or nothing of it. No two
	// publications of the batch share room, From and id. It returns after the
	// database has confirmed the COMMIT; the results are in the order of the
	// batch. After an error the outcome is unknown, unless isDataError reports
	// true for it.
	commit(ctx context.Context, batch []*queuedPublication) (message.Epoch, []result, error)
	// ping checks whether a commit could succeed now.
	ping(ctx context.Context) error
	// isDataError reports whether the batch's own data caused the error. In
	// that case nothing was stored, and a retry would fail in the same way.
	isDataError(err error) bool
	close()
}

// A result is the database's answer for one publication of a batch.
type result struct {
	seq       message.Seq
	at        time.Time
	duplicate bool
	digest    []byte // of the stored data, if duplicate
}

// A queuedPublication is a publication that waits for its commit.
type queuedPublication struct {
	pub      *message.Publication
	digest   [digestSize]byte
	deadline time.Time
	original *queuedPublication // the earlier publication of the batch with the same idKey, or nil
	done     bool               // pub has its outcome
}

// An idKey is the scope in which an id is unique.
type idKey struct{ room, from, id string }

// An appendWorker commits the publications of its share of the rooms, one batch
// at a time, in the order in which they were appended.
type appendWorker struct {
	log         *slog.Logger
	m           *metrics
	pending     *pendingQuota
	outage      *outage
	timeout     time.Duration // Config.AppendTimeout
	pingTimeout time.Duration
	onCompleted func([]*message.Publication)

	// ctx ends when a Close has run out of time: every attempt and every wait
	// then ends.
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token
	done   chan struct{} // closed by commitLoop

	// Owned by commitLoop.
	writer              writer
	seen                map[idKey]*queuedPublication
	failures            int       // consecutive
	lockedRoomsLoggedAt time.Time // when locked rooms were last logged

	lastOK  atomic.Int64 // UnixNano of the database's last answer
	lastErr atomic.Pointer[error]

	completionMu sync.Mutex // serializes the calls of onCompleted

	// mu protects the fields below.
	mu       sync.Mutex
	queue    []*queuedPublication
	closing  bool
	refused  []*message.Publication
	refusing bool // refuseLoop runs
}

// append queues a publication, or refuses it. It never waits for the database,
// only for mu.
func (w *appendWorker) append(p *message.Publication) {
	q := &queuedPublication{pub: p, digest: digest(p.Data), deadline: time.Now().Add(w.timeout)}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closing:
		w.refuse(p, fmt.Errorf("append: %w", message.ErrClosed), reasonClosed)
	case !w.pending.reserve(1, len(p.Data)):
		w.refuse(p, fmt.Errorf("append: %w", errTooManyPending), reasonPending)
	default:
		w.queue = append(w.queue, q)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// refuse fails a publication that was not queued. The caller holds mu.
//
// onCompleted must not run on the goroutine that called append, which may hold
// locks that onCompleted needs, and commitLoop may be waiting for the database.
// So refuseLoop calls it, on a goroutine that lives while there are refusals to
// report. The list needs no bound: a caller waits for each publication in it.
func (w *appendWorker) refuse(p *message.Publication, err error, reason string) {
	p.Err = err
	w.m.failed.WithLabelValues(reason).Inc()
	w.refused = append(w.refused, p)
	if !w.refusing {
		w.refusing = true
		go w.refuseLoop()
	}
}

// refuseLoop completes the refused publications and ends when there are none.
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

// close refuses all later publications. commitLoop finishes those in the queue.
func (w *appendWorker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing = true
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// commitLoop commits one batch after the other until the worker is closed and
// its queue is empty. No other goroutine uses the writer.
func (w *appendWorker) commitLoop() {
	defer close(w.done)
	defer w.writer.close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		if batch := w.dequeueBatch(); len(batch) > 0 {
			w.commitBatch(batch)
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

// complete calls onCompleted once for each room of pubs.
func (w *appendWorker) complete(pubs []*message.Publication) {
	if len(pubs) == 0 {
		return
	}
	w.completionMu.Lock()
	defer w.completionMu.Unlock()
	eachRoom(pubs, w.onCompleted)
}

// finished reports whether commitLoop can end.
func (w *appendWorker) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closing && len(w.queue) == 0
}

// dequeueBatch removes the next batch: at most batchMessages publications and
// batchBytes of data, but at least one publication if the queue has any.
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
	clear(w.queue[:n]) // the backing array must not keep completed publications alive
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	return batch
}

// requeue inserts publications at the front of the queue, because the queued
// publications were appended later.
func (w *appendWorker) requeue(queued []*queuedPublication) {
	if len(queued) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(queued, w.queue...)
}

// ping keeps the worker's health up to date while nothing is published, and
// detects a database that was restored meanwhile. A worker that has committed
// within the last second needs no ping.
func (w *appendWorker) ping() {
	if time.Since(time.Unix(0, w.lastOK.Load())) < pingEvery {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx, w.pingTimeout)
	defer cancel()
	began := time.Now()
	err := w.writer.ping(ctx)
	w.m.observe("ping", began)
	w.recordHealth(exchangePing, err)
}

// recordHealth records how the last exchange with the database ended.
func (w *appendWorker) recordHealth(e exchange, err error) {
	switch {
	case err == nil:
		w.lastOK.Store(time.Now().UnixNano())
		w.lastErr.Store(nil)
		w.failures = 0
		w.outage.recordSuccess(w, e)
	case w.ctx.Err() != nil: // Close ended the attempt: this is not an outage
	default:
		w.lastErr.Store(&err)
		w.failures++
		w.outage.recordFailure(w, e, err)
	}
}

// logLockedRooms logs rooms that another transaction has locked, at most once
// per lockedRetryMax.
func (w *appendWorker) logLockedRooms(locked *lockedRoomsError) {
	if time.Since(w.lockedRoomsLoggedAt) < lockedRetryMax {
		return
	}
	w.lockedRoomsLoggedAt = time.Now()
	w.log.Warn("rooms cannot be written", "rooms", len(locked.rooms), "error", locked)
}

// check returns an error if the worker has not reached the database for longer
// than staleAfter.
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

// backoff waits before the next attempt: 5 ms, doubled with each consecutive
// failure, at most a twentieth of the timeout, and half of the wait is random.
func (w *appendWorker) backoff() {
	d := min(5*time.Millisecond<<min(w.failures, 10), w.timeout/20)
	select {
	case <-time.After(d/2 + rand.N(d/2+1)):
	case <-w.ctx.Done():
	}
}
