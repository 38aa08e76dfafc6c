package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// BatchAppender store several publications in one transaction.
type BatchAppender interface {
	// AppendBatch stores all of them or none, and waits for it. Each is filled
	// in by then, and [Hub.Settled] has been called once a room. What went
	// wrong for one of them is a *message.BatchError.
	AppendBatch(context.Context, []*message.Publication) error
}

// A Directory knows which rooms there are.
type Directory interface {
	// ListRooms returns rooms whose names begin with prefix and sort after
	// after, in byte order, at most limit, and whether there are more. The
	// service's own are left out unless prefix begins with _.
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
}

const (
	// batchTimeout bounds a batch; over it the outcome is unknown.
	batchTimeout = 10 * time.Second
	// MaxRoomList is the most rooms that one answer of ListRooms holds.
	MaxRoomList = 1000
)

// PublishBatch stores all drafts or none, and returns the publications in their
// order. Acks are the caller's answer; members get the messages as always. An
// error that one draft caused is a *message.BatchError; after ErrUnavailable
// the outcome is unknown.
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

// Signal hands an ephemeral event to who is in the room now, on any node. It
// does not block, and keeps nothing of data.
func (h *Hub) Signal(room message.Room, from string, data []byte) { h.signal(room, from, data) }

// ListRooms returns the rooms whose names begin with prefix and sort after
// after, in byte order, at most limit (MaxRoomList by default and at most), and
// whether there are more. The service's own are left out unless prefix begins
// with _.
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

// deliver hands stored publications of one room to its members here and to the
// other nodes. A duplicate goes out again too: that heals a node that died
// between commit and broadcast.
func (h *Hub) deliver(room message.Room, p *payload) {
	if t := h.lookup(room); t != nil {
		for i := range p.frames {
			t.receive(p.frames[i])
		}
	}
	h.cfg.Broker.Publish(room, p.encode())
}

// add appends a stored publication, encoded once for all who get it.
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
