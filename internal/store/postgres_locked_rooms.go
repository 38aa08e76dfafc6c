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
	// A room counts as locked when its row is locked at each of this many
	// probes: other nodes also lock rows, but only for one commit.
	lockedProbes     = 5
	lockedProbeEvery = 20 * time.Millisecond

	// After a wait for a locked room has timed out, batches only probe it, and
	// wait for it again after this delay, which doubles with each timeout.
	lockedRetryMin = 2 * time.Second
	lockedRetryMax = 30 * time.Second
)

// lockTimeout bounds the wait for a room's row. It is short enough that the
// publications that share a batch with a locked room are stored well within
// AppendTimeout.
func lockTimeout(appendTimeout time.Duration) time.Duration {
	return min(2*time.Second, appendTimeout*2/5)
}

// A lockedRoom is the state that a connection keeps for a room after its wait
// for the room's row has timed out.
type lockedRoom struct {
	retryAt time.Time     // when a batch waits for it again
	delay   time.Duration // from the last timeout to retryAt
}

// sqlFindLockedRooms returns the rooms whose rows another transaction has
// locked. A room that does not exist yet is not one of them.
const sqlFindLockedRooms = `
WITH free AS MATERIALIZED (
	SELECT id FROM rooms WHERE name = ANY ($1::text[]) ORDER BY name COLLATE "C" FOR UPDATE SKIP LOCKED
)
SELECT name FROM rooms WHERE name = ANY ($1::text[]) AND id <> ALL (ARRAY(SELECT id FROM free))`

// A lockedRoomsError names the rooms of a batch that another transaction has
// locked for longer than a batch waits. Nothing was stored. If the error did
// not name the rooms, one locked room would stop all others: each later batch
// would contain it, and time out again.
type lockedRoomsError struct{ rooms []string }

func (e *lockedRoomsError) Error() string {
	return fmt.Sprintf("%d rooms are locked by another transaction, such as %s: pg_stat_activity shows which", len(e.rooms), e.rooms[0])
}

// Unwrap returns message.ErrUnavailable, which is what publishers in these rooms get.
func (e *lockedRoomsError) Unwrap() error { return message.ErrUnavailable }

// has reports whether room is one of the locked ones.
func (e *lockedRoomsError) has(room message.Room) bool { return slices.Contains(e.rooms, string(room)) }

// checkLockedRooms probes those rooms of a batch that were found locked a short
// while ago, so that the batch does not wait for them. It returns a
// *lockedRoomsError when some still are locked.
func (w *pgWriter) checkLockedRooms(ctx context.Context, batch []*queuedPublication) error {
	if len(w.lockedRooms) == 0 {
		return nil
	}
	now := time.Now()
	var rooms []string
	for _, room := range roomsOf(batch) {
		if r, known := w.lockedRooms[room]; known && now.Before(r.retryAt) {
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

// findLockedRooms is called when a batch has timed out waiting for its rooms'
// rows. It returns a *lockedRoomsError that names the rooms still locked, and
// adds them to w.lockedRooms, or nil when none is locked any more.
func (w *pgWriter) findLockedRooms(ctx context.Context, batch []*queuedPublication) error {
	rooms := roomsOf(batch)
	for probe := 0; probe < lockedProbes && len(rooms) > 0; probe++ {
		if probe > 0 {
			select {
			case <-time.After(lockedProbeEvery):
			case <-ctx.Done():
				return fmt.Errorf("find locked rooms: %w", ctx.Err())
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
	// No batch has had these rooms since their retryAt: remove them.
	maps.DeleteFunc(w.lockedRooms, func(_ string, r lockedRoom) bool { return now.Sub(r.retryAt) > lockedRetryMax })
	for _, room := range rooms {
		delay := max(w.p.cfg.lockedRetry, min(2*w.lockedRooms[room].delay, lockedRetryMax))
		w.lockedRooms[room] = lockedRoom{retryAt: now.Add(delay), delay: delay}
	}
	return &lockedRoomsError{rooms}
}

// queryLockedRooms returns those rooms that another transaction has locked, and
// removes the others from w.lockedRooms.
func (w *pgWriter) queryLockedRooms(ctx context.Context, rooms []string) ([]string, error) {
	rows, err := w.conn.Query(ctx, "find_locked", rooms)
	if err != nil {
		return nil, fmt.Errorf("find locked rooms: %w", err)
	}
	locked, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("find locked rooms: %w", err)
	}
	for _, room := range rooms {
		if !slices.Contains(locked, room) {
			delete(w.lockedRooms, room)
		}
	}
	return locked, nil
}

// forgetLockedRooms forgets the rooms of a stored batch.
func (w *pgWriter) forgetLockedRooms(batch []*queuedPublication) {
	if len(w.lockedRooms) == 0 {
		return
	}
	for _, q := range batch {
		delete(w.lockedRooms, string(q.pub.Room))
	}
}

// roomsOf returns the names of a batch's rooms, each once, in byte order.
func roomsOf(batch []*queuedPublication) []string {
	rooms := make([]string, len(batch))
	for i, q := range batch {
		rooms[i] = string(q.pub.Room)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}
