package hub

import (
	"context"
	"fmt"

	"switchyard/internal/message"
)

// A RoomLister lists the rooms of the log.
type RoomLister interface {
	// ListRooms returns at most limit rooms whose names begin with prefix and
	// sort after after, in byte order, and whether there are more. It omits the
	// service's own rooms unless prefix begins with _.
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
}

// MaxRoomList is the most rooms that one call of ListRooms returns.
const MaxRoomList = 1000

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
	rooms, more, err := h.cfg.RoomLister.ListRooms(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, fmt.Errorf("listing rooms: %w: %w", message.ErrUnavailable, err)
	}
	return rooms, more, nil
}
