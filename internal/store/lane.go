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
	commit(ctx context.Context, batch []*entry) (message.Epoch, []result, error)
	// ping asks whether a commit could succeed now.
	ping(ctx context.Context) error
	// guilty says whether the error lies in what the batch holds: nothing was
	// stored then, and trying the same again will not help.
	guilty(err error) bool
	close()
}

// A result is what the database says of one entry of a batch.
type result struct {
	seq       message.Seq
	at        time.Time
	duplicate bool
	digest    []byte // of the data stored first, when duplicate
}

// An entry is a publication in a lane.
type entry struct {
	pub      *message.Publication
	digest   [digestSize]byte
	deadline time.Time
	first    *entry // the one of the same id earlier in the batch, or nil
	done     bool   // the outcome is in pub
}

// key is what an id is unique for.
type key struct{ room, from, id string }

// A lane commits the publications of its share of the rooms, one batch at a
// time, in the order they were appended.
type lane struct {
	log     *slog.Logger
	m       *metrics
	pending *pending
	timeout time.Duration // Config.AppendTimeout
	settled func([]*message.Publication)

	// ctx ends when waiting any longer is pointless: a Close that took too long.
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token
	done   chan struct{} // closed by commitLoop

	// Owned by commitLoop.
	writer   writer
	seen     map[key]*entry
	down     bool      // for one log line an outage, not one an attempt
	failures int       // in a row
	toldHeld time.Time // when held rooms were last in the log

	lastOK  atomic.Int64 // UnixNano of the last answer of the database
	lastErr atomic.Pointer[error]

	settling sync.Mutex // one call of settled at a time

	mu       sync.Mutex
	queue    []*entry
	closing  bool
	refused  []*message.Publication
	refusing bool // refuseLoop runs
}

// append queues a publication, or refuses it. It never blocks for longer than
// another append or the taking of a batch does.
func (l *lane) append(p *message.Publication) {
	e := &entry{pub: p, digest: digest(p.Data), deadline: time.Now().Add(l.timeout)}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closing:
		l.refuse(p, fmt.Errorf("append: %w", message.ErrClosed), reasonClosed)
	case !l.pending.add(1, len(p.Data)):
		l.refuse(p, fmt.Errorf("append: %w", errPending), reasonPending)
	default:
		l.queue = append(l.queue, e)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// refuse is called with mu held. The caller of append must not be called back
// by its own call, and the lane may be waiting for the database: hence a
// goroutine of its own, alive while there is something to refuse. The list has
// no bound of its own: each publication in it has an appender that waits for it.
func (l *lane) refuse(p *message.Publication, err error, reason string) {
	p.Err = err
	l.m.failed.WithLabelValues(reason).Inc()
	l.refused = append(l.refused, p)
	if !l.refusing {
		l.refusing = true
		go l.refuseLoop()
	}
}

// refuseLoop settles what was refused and ends when there is no more.
func (l *lane) refuseLoop() {
	for {
		l.mu.Lock()
		pubs := l.refused
		l.refused = nil
		l.refusing = len(pubs) > 0
		l.mu.Unlock()
		if len(pubs) == 0 {
			return
		}
		l.hand(pubs)
	}
}

// close refuses what comes from now on. The loop finishes what waits.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// commitLoop commits one batch after the other until the lane is closed and
// empty. It alone touches the writer.
func (l *lane) commitLoop() {
	defer close(l.done)
	defer l.writer.close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		if batch := l.take(); len(batch) > 0 {
			l.commit(batch)
			continue
		}
		if l.finished() {
			return
		}
		select {
		case <-l.wake:
		case <-l.ctx.Done():
		case <-tick.C:
			l.ping()
		}
	}
}

// finished says whether the loop has nothing to do any more.
func (l *lane) finished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing && len(l.queue) == 0
}

// take removes the next batch from the queue.
func (l *lane) take() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && n < batchMessages {
		size += len(l.queue[n].pub.Data)
		if n > 0 && size > batchBytes {
			break
		}
		n++
	}
	batch := append([]*entry(nil), l.queue[:n]...)
	clear(l.queue[:n]) // what is settled must not be kept alive from here
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	return batch
}

// putBack returns entries to the front of the queue.
func (l *lane) putBack(entries []*entry) {
	if len(entries) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(entries, l.queue...)
}

// ping keeps Check honest while nothing is published, and finds a database
// that was restored meanwhile. A lane that commits needs none.
func (l *lane) ping() {
	if time.Since(time.Unix(0, l.lastOK.Load())) < pingEvery {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.timeout/5)
	defer cancel()
	began := time.Now()
	err := l.writer.ping(ctx)
	l.m.observe("ping", began)
	l.note(err)
}

// note remembers how the last exchange with the database went.
func (l *lane) note(err error) {
	switch {
	case err == nil:
		l.lastOK.Store(time.Now().UnixNano())
		l.lastErr.Store(nil)
		l.failures = 0
		if l.down {
			l.log.Info("the log can be written again")
		}
	case l.ctx.Err() != nil: // closed meanwhile: nobody's fault
		return
	default:
		l.lastErr.Store(&err)
		l.failures++
		if !l.down {
			l.log.Warn("the log cannot be written; trying on", "error", err)
		}
	}
	l.down = err != nil
}

// noteHeld tells the operator of rooms that somebody holds, from time to time.
func (l *lane) noteHeld(held *heldError) {
	if time.Since(l.toldHeld) < heldMax {
		return
	}
	l.toldHeld = time.Now()
	l.log.Warn("rooms can't be written", "rooms", len(held.rooms), "error", held)
}

// check says what is wrong, in words for an operator.
func (l *lane) check() error {
	age := time.Since(time.Unix(0, l.lastOK.Load()))
	if age <= staleAfter {
		return nil
	}
	if err := l.lastErr.Load(); err != nil {
		return fmt.Errorf("the log could not be written for %v: %w", age.Round(time.Second), *err)
	}
	return fmt.Errorf("the log has not answered for %v", age.Round(time.Second))
}

// backoff waits 5 ms after the first failure, doubled at each further one up
// to a twentieth of the timeout, half of it random.
func (l *lane) backoff() {
	d := min(5*time.Millisecond<<min(l.failures, 10), l.timeout/20)
	select {
	case <-time.After(d/2 + rand.N(d/2+1)):
	case <-l.ctx.Done():
	}
}
