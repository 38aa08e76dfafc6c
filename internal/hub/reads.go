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
	// maxKind bounds those of one kind: to open rooms, pages for members who
	// catch up, and repairs. None waits behind a storm of another.
	maxKind = 6
	// firstRetry is the wait after a first failed read; it doubles up to
	// lastRetry.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// reads hold a token for each read under way or next in line: one of the kind,
// where that has no goroutines of its own as repairs have, and one of all. So few
// of a kind stand in the line for all, which is served as they came.
type reads struct {
	all   chan struct{}
	opens chan struct{}
	pages chan struct{}
}

func newReads() reads {
	return reads{
		all:   make(chan struct{}, maxReads),
		opens: make(chan struct{}, maxKind),
		pages: make(chan struct{}, maxKind),
	}
}

// read asks the log, bounded in time and in how many ask at once. Ctx bounds the
// wait before it, kind is nil for a repair, and size says, after that wait, how
// many bytes to read at most.
func (h *Hub) read(ctx context.Context, kind chan struct{}, r message.Range, size func() int) (message.Page, error) {
	for _, line := range []chan struct{}{kind, h.reads.all} {
		if line == nil {
			continue
		}
		select {
		case line <- struct{}{}:
			defer func() { <-line }()
		case <-ctx.Done():
			return message.Page{}, fmt.Errorf("waiting to read the log: %w", ctx.Err())
		}
	}
	r.Repair = true
	r.MaxBytes = size()
	// The log's time begins here and not in line: a storm is no failure of it.
	ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
	defer cancel()
	page, err := h.cfg.Log.Read(ctx, r)
	h.noteRead(err)
	return page, err
}

// noteRead logs one line when the log goes away and one when it is back, not
// one for each room that misses it.
func (h *Hub) noteRead(err error) {
	switch {
	case err == nil && h.away.Swap(false):
		h.log.Info("the log can be read again")
	case err != nil && h.ctx.Err() == nil && !h.away.Swap(true):
		h.log.Warn("the log can't be read; rooms try again", "error", err)
	}
}

// noteEpoch logs one line for a new epoch, not one for each room.
func (h *Hub) noteEpoch(e message.Epoch) {
	if before, _ := h.epoch.Swap(e).(message.Epoch); before != e {
		h.log.Warn("the log has a new epoch: positions before it are void", "epoch", e)
	}
}

// A repairShop is where topics wait to be repaired. Few goroutines serve them,
// in order of arrival, and live while there is work: thousands of rooms that
// are behind at once cost a place in a line each.
type repairShop struct {
	mu      sync.Mutex
	line    []*topic
	workers int
}

// repair puts a topic, which has set repairing, in line. It does not block:
// topic.mu may be held.
func (h *Hub) repair(t *topic) {
	s := &h.shop
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line = append(s.line, t)
	if s.workers < maxKind && h.ctx.Err() == nil {
		s.workers++
		h.spawn(h.repairLoop)
	}
}

// repairLoop repairs topics, one read each, until none is left. A topic that
// needs another read goes to the end of the line: one that is far behind, or in a
// busy room, does not keep the others waiting.
func (h *Hub) repairLoop() {
	for t := h.shop.next(h.ctx); t != nil; t = h.shop.next(h.ctx) {
		t.repair()
	}
}

// next takes the first of the line; nil ends a worker.
func (s *repairShop) next(ctx context.Context) *topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.line) == 0 || ctx.Err() != nil {
		s.workers--
		s.line = nil
		return nil
	}
	t := s.line[0]
	s.line[0] = nil
	s.line = s.line[1:]
	return t
}
