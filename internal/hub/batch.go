package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
)

// A BatchAppender stores several publications in one transaction.
type BatchAppender interface {
	// AppendBatch stores all of them or none and waits for the commit. When it
	// returns, the publications have their outcome and [Hub.Completed] was
	// called once for each room. An error that one publication caused is a
	// *message.BatchError.
	AppendBatch(context.Context, []*message.Publication) error
}

// batchTimeout bounds a batch. After it the outcome is unknown.
const batchTimeout = 10 * time.Second

// PublishBatch stores all drafts or none, and returns the publications in the
// order of the drafts. Members receive the messages as with Publish. An error
// that one draft caused is a *message.BatchError; after ErrUnavailable the
// outcome is unknown.
func (h *Hub) PublishBatch(ctx context.Context, drafts []message.Draft) ([]*message.Publication, error) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	batch := make([]*message.Publication, len(drafts))
	for i, d := range drafts {
		if d.ID == "" {
			d.ID = h.newID()
		}
		batch[i] = &message.Publication{Draft: d}
	}
	err := h.cfg.Batches.AppendBatch(ctx, batch)
	switch {
	case err == nil:
		return batch, nil
	case ctx.Err() != nil && !errors.Is(err, message.ErrUnavailable):
		return nil, fmt.Errorf("storing a batch: %w: %w", message.ErrUnavailable, err)
	}
	return nil, fmt.Errorf("storing a batch: %w", err)
}
