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

// A retentionPolicy says what a room keeps. Zero fields bound nothing.
type retentionPolicy struct {
	age   time.Duration
	count int64
}

// keeps says whether the rule keeps everything.
func (p retentionPolicy) keepsAll() bool { return p == retentionPolicy{} }

const (
	// retainEvery is the time from one walk over the rooms to the next.
	retainEvery = time.Minute
	// walkPageSize is how many rooms one step of a walk looks at. A step is one
	// query by the rooms' own key, with one look at the oldest message of
	// each: a few milliseconds.
	walkPageSize = 1000
	// The canaries' rooms keep few messages, whatever the settings say.
	canaryPrefix    = "_canary."
	canaryKeepCount = 10
)

// A trimmer is what retention needs of a dialect.
type trimmer interface {
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
	// due makes the next step of the walk and returns the rooms that have more
	// than the rule keeps. over says that the walk has come to its end, or is
	// not ours to make.
	walkStep(ctx context.Context, policy retentionPolicy) (rooms []message.Room, ended bool, err error)
	// trim removes the oldest messages of a room that the rule does not keep,
	// at most full of them, and raises the room's first, in one transaction.
	// errRoomLocked says that it would have had to wait.
	trim(ctx context.Context, room message.Room, policy retentionPolicy) (removed int, err error)
}

// errRoomLocked leaves a room to the next walk.
var errRoomLocked = errors.New("others hold the room")

// retention removes a prefix of each room, off the hot path. It takes at most
// a third of one connection's time: each step is followed by a pause of twice
// as long as it took. What is still to be done is not remembered: it follows
// from the rooms, so a killed node leaves nothing half done.
type retention struct {
	trimmer   trimmer
	trimLimit int // rows of a trim that was cut short by its bound
	policy    retentionPolicy
	m         *metrics
	log       *slog.Logger
}

// retainLoop makes a round each minute until ctx ends.
func (r *retention) retainLoop(ctx context.Context) {
	tick := time.NewTicker(retainEvery)
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

// trimCanaries trims the service's own rooms. They are found by name: there are as
// many as nodes ever were, and a walk over all rooms for their sake, where
// nothing else is to be removed, would be waste.
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

// trimRoom trims one room, in small steps, to what the rule keeps.
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

// pause waits for twice as long as it is since began: 5 ms at least, 1 s at most.
func (r *retention) pause(ctx context.Context, began time.Time) {
	select {
	case <-time.After(min(max(2*time.Since(began), 5*time.Millisecond), time.Second)):
	case <-ctx.Done():
	}
}

// orNull passes a bound that is not set as NULL, which no comparison is true of.
func orNull[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
