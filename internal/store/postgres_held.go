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
	heldProbes     = 5
	heldProbeEvery = 20 * time.Millisecond

	// A held room is only looked at for a while, and then waited for again: at
	// first for this long, doubled each time that the wait was in vain.
	heldMin = 2 * time.Second
	heldMax = 30 * time.Second
)

// lockTimeout bounds the wait for a room's row: short enough that those who
// share a batch with a held room are stored well within AppendTimeout.
func lockTimeout(appendTimeout time.Duration) time.Duration {
	return min(2*time.Second, appendTimeout*2/5)
}

// A heldRoom is remembered by the connection that has waited for it in vain.
type heldRoom struct {
	until time.Time     // when it is waited for again
	pause time.Duration // until then, from the last time
}

// sqlHeld names those of some rooms whose rows another transaction has locked.
// A room that nobody has made yet is none of them.
const sqlHeld = `
WITH free AS MATERIALIZED (
	SELECT id FROM rooms WHERE name = ANY ($1::text[]) ORDER BY name COLLATE "C" FOR UPDATE SKIP LOCKED
)
SELECT name FROM rooms WHERE name = ANY ($1::text[]) AND id <> ALL (ARRAY(SELECT id FROM free))`

// A heldError says that another transaction holds rooms of a batch for longer
// than a batch waits. Nothing was stored. Without telling these rooms apart, one
// of them would stop all others: the next batch has it again, and waits again.
type heldError struct{ rooms []string }

func (e *heldError) Error() string {
	return fmt.Sprintf("%d rooms are locked by another transaction, such as %s: pg_stat_activity tells whose", len(e.rooms), e.rooms[0])
}

// Unwrap makes it an outage of these rooms.
func (e *heldError) Unwrap() error { return message.ErrUnavailable }

// has says whether a room is one of those.
func (e *heldError) has(room message.Room) bool { return slices.Contains(e.rooms, string(room)) }

// stillHeld looks, before a batch waits for them, at those of its rooms that were
// held. It returns a *heldError when some still are.
func (w *pgWriter) stillHeld(ctx context.Context, batch []*entry) error {
	if len(w.held) == 0 {
		return nil
	}
	now := time.Now()
	var rooms []string
	for _, room := range roomsOf(batch) {
		if h, known := w.held[room]; known && now.Before(h.until) {
			rooms = append(rooms, room)
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	held, err := w.locked(ctx, rooms)
	if err == nil && len(held) > 0 {
		err = &heldError{held}
	}
	return err
}

// findHeld returns a *heldError that names those of a batch's rooms for which it
// has waited in vain, and remembers them. Nil says that whoever held them has
// let go.
func (w *pgWriter) findHeld(ctx context.Context, batch []*entry) error {
	rooms := roomsOf(batch)
	for probe := 0; probe < heldProbes && len(rooms) > 0; probe++ {
		if probe > 0 {
			select {
			case <-time.After(heldProbeEvery):
			case <-ctx.Done():
				return fmt.Errorf("look for held rooms: %w", ctx.Err())
			}
		}
		var err error
		if rooms, err = w.locked(ctx, rooms); err != nil {
			return err
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	now := time.Now()
	// Nobody asked for these since they were to be waited for again.
	maps.DeleteFunc(w.held, func(_ string, h heldRoom) bool { return now.Sub(h.until) > heldMax })
	for _, room := range rooms {
		pause := max(heldMin, min(2*w.held[room].pause, heldMax))
		w.held[room] = heldRoom{until: now.Add(pause), pause: pause}
	}
	return &heldError{rooms}
}

// locked returns those of some rooms that another transaction has locked, and
// forgets the others.
func (w *pgWriter) locked(ctx context.Context, rooms []string) ([]string, error) {
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
			delete(w.held, room)
		}
	}
	return locked, nil
}

// forgetHeld forgets the rooms of a batch that was stored.
func (w *pgWriter) forgetHeld(batch []*entry) {
	if len(w.held) == 0 {
		return
	}
	for _, e := range batch {
		delete(w.held, string(e.pub.Room))
	}
}

// roomsOf returns the names of a batch's rooms, each once, in byte order.
func roomsOf(batch []*entry) []string {
	rooms := make([]string, len(batch))
	for i, e := range batch {
		rooms[i] = string(e.pub.Room)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}
