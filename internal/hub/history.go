package hub

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// HistoryMemory is about the most that the answer with a page of history takes, in bytes.
const HistoryMemory = 320 << 10

// errNoMemoryForHistory refuses a read of history.
var errNoMemoryForHistory = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "this node has no memory for the answer at the moment; see QUEUE_TOTAL_BYTES",
	RetryAfter: time.Second,
}

// History returns a page of a room; done must be called when its answer is sent. Delivery
// does not wait for it, so it does not set Range.ForDelivery. Calls that wait for others are
// served reader by reader; a reader is anything that is equal for its calls only. All waits
// together are bounded by logTimeout. The error has the code unavailable.
func (h *Hub) History(ctx context.Context, reader any, r message.Range) (page message.Page, done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	if err := h.historySlots.acquire(ctx, reader); err != nil {
		return page, nil, fmt.Errorf("waiting to read history: %w: %w", message.ErrUnavailable, err)
	}
	defer h.historySlots.release()
	done, err = h.reserveHistory(ctx, reader)
	if err != nil {
		return page, nil, err
	}
	if r.Limit <= 0 || r.Limit > protocol.MaxHistory {
		r.Limit = protocol.MaxHistory
	}
	r.MaxBytes = h.cfg.bounds.pageBytes
	if page, err = h.cfg.Log.Read(ctx, r); err != nil {
		done()
		return page, nil, fmt.Errorf("reading history: %w: %w", message.ErrUnavailable, err)
	}
	return page, done, nil
}

// reserveHistory reserves the memory of a page until done is called.
func (h *Hub) reserveHistory(ctx context.Context, reader any) (done func(), err error) {
	if h.cfg.Memory == nil {
		return func() {}, nil
	}
	if err := h.cfg.Memory.Reserve(ctx, reader, HistoryMemory); err != nil {
		return nil, errNoMemoryForHistory
	}
	return func() { h.cfg.Memory.Free(HistoryMemory) }, nil
}

// sendHistory answers with a page of the log. The client's next request waits for
// the answer.
func (c *Client) sendHistory(ctx context.Context, r *protocol.Request) error {
	q := message.Range{Room: r.Room, After: r.After, Before: r.Before, Limit: r.Limit}
	if !r.HasAfter && !r.HasBefore {
		q.Before = protocol.MaxSeq // the newest messages
	}
	page, done, err := c.hub.History(ctx, c.readerKey(), q)
	if err != nil {
		c.hub.logger.Debug("history not read", "error", err)
		return err
	}
	defer done()
	answer := protocol.History(r.Ref, r.Room, &page)
	c.chargeRead(len(answer))
	c.out.SendAnswer(answer)
	return nil
}
