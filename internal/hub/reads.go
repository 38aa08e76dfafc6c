package hub

import (
	"context"
	"fmt"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// logTimeout bounds each read of the log.
	logTimeout = 5 * time.Second
	// maxReads bounds the reads of the log under way for members. It is what
	// the log sets apart for them.
	maxReads = 8
	// maxReadsPerKind bounds those of one kind: to open rooms, pages for members who
	// catch up, and repairs. None waits behind a storm of another.
	maxReadsPerKind = 6
	// minRetry is the wait after a first failed read; it doubles up to
	// maxRetry.
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
)

// readSlots hold a token for each read under way or next in line: one of the kind,
// where that has no goroutines of its own as repairs have, and one of all. So few
// of a kind stand in the line for all, which is served as they came.
type readSlots struct {
	all   chan struct{}
	opens chan struct{}
	pages chan struct{}
}

func newReadSlots() readSlots {
	return readSlots{
		all:   make(chan struct{}, maxReads),
		opens: make(chan struct{}, maxReadsPerKind),
		pages: make(chan struct{}, maxReadsPerKind),
	}
}

// read asks the log, bounded in time and in how many ask at once. Ctx bounds the
// wait before it, kind is nil for a repair, and size says, after that wait, how
// many bytes to read at most.
func (h *Hub) read(ctx context.Context, kind chan struct{}, r message.Range, size func() int) (message.Page, error) {
	for _, slots := range []chan struct{}{kind, h.readSlots.all} {
		if slots == nil {
			continue
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return message.Page{}, fmt.Errorf("waiting to read the log: %w", ctx.Err())
		}
	}
	r.ForDelivery = true
	r.MaxBytes = size()
	// The log's time begins here and not in line: a storm is no failure of it.
	ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
	defer cancel()
	page, err := h.cfg.Log.Read(ctx, r)
	h.logAvailability(err)
	return page, err
}

// logAvailability logs one line when the log goes away and one when it is back, not
// one for each room that misses it.
func (h *Hub) logAvailability(err error) {
	switch {
	case err == nil && h.logUnavailable.Swap(false):
		h.logger.Info("the log can be read again")
	case err != nil && h.ctx.Err() == nil && !h.logUnavailable.Swap(true):
		h.logger.Warn("the log can't be read; rooms try again", "error", err)
	}
}

// logNewEpoch logs one line for a new epoch, not one for each room.
func (h *Hub) logNewEpoch(e message.Epoch) {
	if before, _ := h.loggedEpoch.Swap(e).(message.Epoch); before != e {
		h.logger.Warn("the log has a new epoch: positions before it are void", "epoch", e)
	}
}

// A repairQueue is where topics wait to be repaired. Few goroutines serve them,
// in order of arrival, and live while there is work: thousands of rooms that
// are behind at once cost a place in a line each.
type repairQueue struct {
	mu      sync.Mutex
	topics  []*topic
	workers int
}

// enqueueRepair puts a topic, which has set repairing, in line. It does not block:
// topic.mu may be held.
func (h *Hub) enqueueRepair(t *topic) {
	q := &h.repairQueue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.topics = append(q.topics, t)
	if q.workers < maxReadsPerKind && h.ctx.Err() == nil {
		q.workers++
		h.spawn(h.repairLoop)
	}
}

// repairLoop repairs topics, one read each, until none is left. A topic that
// needs another read goes to the end of the line: one that is far behind, or in a
// busy room, does not keep the others waiting.
func (h *Hub) repairLoop() {
	for t := h.repairQueue.dequeue(h.ctx); t != nil; t = h.repairQueue.dequeue(h.ctx) {
		t.repair()
	}
}

// dequeue takes the first of the line; nil ends a worker.
func (q *repairQueue) dequeue(ctx context.Context) *topic {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.topics) == 0 || ctx.Err() != nil {
		q.workers--
		q.topics = nil
		return nil
	}
	t := q.topics[0]
	q.topics[0] = nil
	q.topics = q.topics[1:]
	return t
}
