package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"switchyard/internal/message"
)

// A retentionPolicy bounds what a room keeps. A zero field means no bound.
type retentionPolicy struct {
	age   time.Duration
	count int64
}

// keepsAll reports whether the policy removes nothing.
func (p retentionPolicy) keepsAll() bool { return p == retentionPolicy{} }

const (
	// retentionInterval is the time from one walk over the rooms to the next.
	retentionInterval = time.Minute
	// walkPageSize is how many rooms one step of a walk inspects. A step is one
	// query by the primary key of rooms, with one lookup of the oldest message
	// of each: a few milliseconds.
	walkPageSize = 1000
	// Canary rooms keep few messages, whatever the settings are.
	canaryPrefix    = "_canary."
	canaryKeepCount = 10
)

// A trimmer is a dialect's part of retention.
type trimmer interface {
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
	// walkStep makes the next step of the walk over all rooms and returns the
	// rooms that have more than the policy keeps. ended reports that the walk
	// is complete, or that another node is doing it.
	walkStep(ctx context.Context, policy retentionPolicy) (rooms []message.Room, ended bool, err error)
	// trim removes those of a room's messages that the policy does not keep,
	// the oldest first and at most retention.trimLimit of them, and raises the
	// room's first, in one transaction. It returns errRoomLocked when it would
	// have to wait long.
	trim(ctx context.Context, room message.Room, policy retentionPolicy) (removed int, err error)
}

// errRoomLocked makes retention skip a room until the next walk.
var errRoomLocked = errors.New("another transaction has locked the room")

// retention removes the oldest messages of each room, outside the write path.
// It uses at most a third of one connection's time, because it pauses after
// each step for twice as long as the step took. It keeps no list of pending
// work: each walk finds it in the rooms, so a killed node leaves nothing half
// done. Only retentionLoop's goroutine uses it.
type retention struct {
	trimmer   trimmer
	trimLimit int // in messages; if a trim removed this many, more may be left
	policy    retentionPolicy
	m         *metrics
	log       *slog.Logger
}

// retentionLoop trims all rooms each minute until ctx ends.
func (r *retention) retentionLoop(ctx context.Context) {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.runOnce(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("could not remove old messages; trying again in a minute", "error", err)
		}
	}
}

// runOnce trims all rooms once.
func (r *retention) runOnce(ctx context.Context) error {
	if err := r.trimCanaries(ctx); err != nil {
		return fmt.Errorf("retention of canaries: %w", err)
	}
	for ended := r.policy.keepsAll(); !ended && ctx.Err() == nil; {
		began := time.Now()
		rooms, last, err := r.trimmer.walkStep(ctx, r.policy)
		r.m.observe("retention_walk", began)
		if err != nil {
			return fmt.Errorf("retention: %w", err)
		}
		r.pause(ctx, began)
		for _, room := range rooms {
			if err := r.trimRoom(ctx, room, r.policy); err != nil {
				return fmt.Errorf("retention: %w", err)
			}
		}
		ended = last
	}
	return ctx.Err()
}

// trimCanaries trims the canary rooms, one for each node that ever ran. It
// lists them by name, since most services have no retention policy and need no
// walk over all rooms.
func (r *retention) trimCanaries(ctx context.Context) error {
	policy := retentionPolicy{count: canaryKeepCount}
	var after message.Room
	for more := true; more; {
		var rooms []message.RoomInfo
		var err error
		began := time.Now()
		if rooms, more, err = r.trimmer.ListRooms(ctx, canaryPrefix, after, maxRoomList); err != nil {
			return err
		}
		r.pause(ctx, began)
		for _, room := range rooms {
			after = room.Room
			if int64(room.Head-room.First) < canaryKeepCount {
				continue
			}
			if err := r.trimRoom(ctx, room.Room, policy); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// trimRoom trims one room, in small steps, to what the policy keeps.
func (r *retention) trimRoom(ctx context.Context, room message.Room, policy retentionPolicy) error {
	if strings.HasPrefix(string(room), canaryPrefix) {
		policy.count = canaryKeepCount
	}
	for ctx.Err() == nil {
		began := time.Now()
		n, err := r.trimmer.trim(ctx, room, policy)
		r.m.observe("retention_trim", began)
		if errors.Is(err, errRoomLocked) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("trim %s: %w", room, err)
		}
		r.m.trimmed.Add(float64(n))
		r.pause(ctx, began)
		if n < r.trimLimit {
			return nil
		}
	}
	return ctx.Err()
}

// pause waits for twice the time since began, but at least 5 ms and at most 1 s.
func (r *retention) pause(ctx context.Context, began time.Time) {
	select {
	case <-time.After(min(max(2*time.Since(began), 5*time.Millisecond), time.Second)):
	case <-ctx.Done():
	}
}

// orNull returns nil for a bound that is not set: a comparison with NULL is
// never true.
func orNull[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
