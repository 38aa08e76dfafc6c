package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

const (
	// A room is held when it was locked each time of so many: other nodes lock
	// it, too, but for a commit.
	lockedProbes     = 5
	lockedProbeEvery = 20 * time.Millisecond

	// A held room is only looked at for a while, and then waited for again: at
	// first for this long, doubled each time that the wait was in vain.
	lockedRetryMin = 2 * time.Second
	lockedRetryMax = 30 * time.Second
)

// lockTimeout bounds the wait for a room's row: short enough that those who
// share a batch with a held room are stored well within AppendTimeout.
func lockTimeout(appendTimeout time.Duration) time.Duration {
	return min(2*time.Second, appendTimeout*2/5)
}

// A lockedRoom is remembered by the connection that has waited for it in vain.
type lockedRoom struct {
	retryAt time.Time     // when it is waited for again
	delay   time.Duration // until then, from the last time
}

// sqlFindLockedRooms names those of some rooms whose rows another transaction has locked.
// A room that nobody has made yet is none of them.
const sqlFindLockedRooms = `
WITH free AS MATERIALIZED (
	SELECT id FROM rooms WHERE name = ANY ($1::text[]) ORDER BY name COLLATE "C" FOR UPDATE SKIP LOCKED
)
SELECT name FROM rooms WHERE name = ANY ($1::text[]) AND id <> ALL (ARRAY(SELECT id FROM free))`

// A lockedRoomsError says that another transaction holds rooms of a batch for longer
// than a batch waits. Nothing was stored. Without telling these rooms apart, one
// of them would stop all others: the next batch has it again, and waits again.
type lockedRoomsError struct{ rooms []string }

func (e *lockedRoomsError) Error() string {
	return fmt.Sprintf("%d rooms are locked by another transaction, such as %s: pg_stat_activity tells whose", len(e.rooms), e.rooms[0])
}

// Unwrap makes it an outage of these rooms.
func (e *lockedRoomsError) Unwrap() error { return message.ErrUnavailable }

// has says whether a room is one of those.
func (e *lockedRoomsError) has(room message.Room) bool { return slices.Contains(e.rooms, string(room)) }

// checkLockedRooms looks, before a batch waits for them, at those of its rooms that were
// held. It returns a *lockedRoomsError when some still are.
func (w *pgWriter) checkLockedRooms(ctx context.Context, batch []*queuedPublication) error {
	if len(w.lockedRooms) == 0 {
		return nil
	}
	now := time.Now()
	var rooms []string
	for _, room := range roomsOf(batch) {
		if h, known := w.lockedRooms[room]; known && now.Before(h.retryAt) {
			rooms = append(rooms, room)
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	locked, err := w.queryLockedRooms(ctx, rooms)
	if err == nil && len(locked) > 0 {
		err = &lockedRoomsError{locked}
	}
	return err
}

// findLockedRooms returns a *lockedRoomsError that names those of a batch's rooms for which it
// has waited in vain, and remembers them. Nil says that whoever held them has
// let go.
func (w *pgWriter) findLockedRooms(ctx context.Context, batch []*queuedPublication) error {
	rooms := roomsOf(batch)
	for probe := 0; probe < lockedProbes && len(rooms) > 0; probe++ {
		if probe > 0 {
			select {
			case <-time.After(lockedProbeEvery):
			case <-ctx.Done():
				return fmt.Errorf("look for held rooms: %w", ctx.Err())
			}
		}
		var err error
		if rooms, err = w.queryLockedRooms(ctx, rooms); err != nil {
			return err
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	now := time.Now()
	// Nobody asked for these since they were to be waited for again.
	maps.DeleteFunc(w.lockedRooms, func(_ string, h lockedRoom) bool { return now.Sub(h.retryAt) > lockedRetryMax })
	for _, room := range rooms {
		delay := max(lockedRetryMin, min(2*w.lockedRooms[room].delay, lockedRetryMax))
		w.lockedRooms[room] = lockedRoom{retryAt: now.Add(delay), delay: delay}
	}
	return &lockedRoomsError{rooms}
}

// queryLockedRooms returns those of some rooms that another transaction has locked, and
// forgets the others.
func (w *pgWriter) queryLockedRooms(ctx context.Context, rooms []string) ([]string, error) {
	rows, err := w.conn.Query(ctx, "held", rooms)
	if err != nil {
		return nil, fmt.Errorf("look for held rooms: %w", err)
	}
	locked, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for held rooms: %w", err)
	}
	for _, room := range rooms {
		if !slices.Contains(locked, room) {
			delete(w.lockedRooms, room)
		}
	}
	return locked, nil
}

// forgetLockedRooms forgets the rooms of a batch that was stored.
func (w *pgWriter) forgetLockedRooms(batch []*queuedPublication) {
	if len(w.lockedRooms) == 0 {
		return
	}
	for _, e := range batch {
		delete(w.lockedRooms, string(e.pub.Room))
	}
}

// roomsOf returns the names of a batch's rooms, each once, in byte order.
func roomsOf(batch []*queuedPublication) []string {
	rooms := make([]string, len(batch))
	for i, e := range batch {
		rooms[i] = string(e.pub.Room)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}
