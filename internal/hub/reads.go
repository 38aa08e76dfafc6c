package hub

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
)

const (
	// logTimeout bounds each read of the log.
	logTimeout = 5 * time.Second
	// maxReads bounds the concurrent reads of the log for delivery. The log
	// reserves as many for it.
	maxReads = 8
	// maxReadsPerKind bounds the concurrent reads of one kind: to open rooms,
	// pages for members that catch up, and repairs. So no kind waits behind a
	// burst of another.
	maxReadsPerKind = 6
	// maxHistoryReads bounds the concurrent reads of history: as many as the log has
	// connections for, by default. More would wait there in the order of arrival.
	maxHistoryReads = 5
	// ConcurrentReads bounds all of them.
	ConcurrentReads = maxReads + maxHistoryReads
	// minRetry is the wait after a first failed read. It doubles up to
	// maxRetry.
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
)

// readSlots bound the concurrent reads of the log. A read puts a token first
// into the channel of its kind and then into all. So only a few reads of each
// kind wait for all, which is served in order of arrival. Repairs need no
// channel of their own, because at most maxReadsPerKind goroutines make them.
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

// read reads from the log, with a timeout and bounded concurrency. Ctx bounds
// the wait for a slot. Kind is nil for a repair. Size returns, after that wait,
// how many bytes to read at most.
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
	// The timeout starts after the wait: a burst is not a failure of the log.
	ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
	defer cancel()
	page, err := h.cfg.Log.Read(ctx, r)
	h.logAvailability(err)
	return page, err
}

// logAvailability logs one line when the log fails and one when it works again,
// instead of one for each room.
func (h *Hub) logAvailability(err error) {
	switch {
	case err == nil && h.logUnavailable.Swap(false):
		h.logger.Info("the log can be read again")
	case err != nil && h.ctx.Err() == nil && !h.logUnavailable.Swap(true):
		h.logger.Warn("the log can't be read; rooms retry", "error", err)
	}
}

// logNewEpoch logs one line for a new epoch, instead of one for each room.
func (h *Hub) logNewEpoch(e message.Epoch) {
	if before, _ := h.loggedEpoch.Swap(e).(message.Epoch); before != e {
		h.logger.Warn("the log has a new epoch: positions before it are invalid", "epoch", e)
	}
}
