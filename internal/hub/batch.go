package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A BatchAppender stores several publications in one transaction.
type BatchAppender interface {
	// AppendBatch stores all of them or none and waits for the commit. When it
	// returns, the publications have their outcome and [Hub.Completed] was
	// called once for each room. An error that one publication caused is a
	// *message.BatchError.
	AppendBatch(context.Context, []*message.Publication) error
}

// A RoomLister lists the rooms of the log.
type RoomLister interface {
	// ListRooms returns at most limit rooms whose names begin with prefix and
	// sort after after, in byte order, and whether there are more. It omits the
	// service's own rooms unless prefix begins with _.
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
}

const (
	// batchTimeout bounds a batch. After it the outcome is unknown.
	batchTimeout = 10 * time.Second
	// MaxRoomList is the most rooms that one call of ListRooms returns.
	MaxRoomList = 1000
)

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

// Signal sends a signal to the current members of a room on every node. It does
// not block and does not keep data.
func (h *Hub) Signal(room message.Room, from string, data []byte) { h.signal(room, from, data) }

// ListRooms returns at most limit rooms whose names begin with prefix and sort
// after after, in byte order, and whether there are more. MaxRoomList is the
// default and the maximum of limit. The service's own rooms are omitted unless
// prefix begins with _.
func (h *Hub) ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	if limit <= 0 || limit > MaxRoomList {
		limit = MaxRoomList
	}
	rooms, more, err := h.cfg.Directory.ListRooms(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, fmt.Errorf("listing rooms: %w: %w", message.ErrUnavailable, err)
	}
	return rooms, more, nil
}

// deliverAndBroadcast sends committed publications of one room to the members on this node
// and to the other nodes. It sends duplicates again, too: that repairs delivery
// after a node died between commit and broadcast.
func (h *Hub) deliverAndBroadcast(room message.Room, p *payload) {
	if t := h.lookup(room); t != nil {
		for i := range p.frames {
			t.receive(p.frames[i])
		}
	}
	h.cfg.Broker.Publish(room, p.encode())
}

// add appends a committed publication. Its frame is encoded here, once for all
// members.
func (p *payload) add(pub *message.Publication) {
	m := pub.Message()
	p.epoch = pub.Epoch
	p.frames = append(p.frames, roomFrame{
		seq:       pub.Seq,
		epoch:     pub.Epoch,
		frame:     protocol.Message(&m),
		createdAt: p.sentAt,
	})
}
