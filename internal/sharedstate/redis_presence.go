package sharedstate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"switchyard/internal/message"
)

var (
	applyPresenceScript = script("apply_presence")
	roomPresenceScript  = script("room_presence")
	tagsScript          = script("tags")
	sweepScript         = script("sweep")
	sweepRoomScript     = script("sweep_room")
)

const (
	// maxScannedEntries bounds the entries that the script reads to list a room.
	// It includes those of dead nodes; a room with more is only counted.
	maxScannedEntries = 20_000
	// sweepRoomsPerCall and sweepPageSize bound what one script removes.
	sweepRoomsPerCall = 16
	sweepPageSize     = 200
)

// shardKey returns a key of a shard, which has a hash tag of its own. Nodes of
// all releases that share a Redis must agree on it.
func (r *redisBackend) shardKey(shard int, name string) string {
	return fmt.Sprintf("%s{p%02d}:%s", r.prefix, shard, name)
}

// tagKeys are the keys of the shard's revisions and of the tag's rooms.
func (r *redisBackend) tagKeys(shard int, tag string) []string {
	return []string{r.shardKey(shard, "tags"), r.shardKey(shard, "rooms:"+tag)}
}

// roomKeys are the keys of the room's entries and of their counts by tag.
func (r *redisBackend) roomKeys(room message.Room) []string {
	shard := shardOf(room)
	return []string{r.shardKey(shard, "who:"+string(room)), r.shardKey(shard, "count:"+string(room))}
}

func (r *redisBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	calls := make([]*call, len(batches))
	rooms := make([][]message.Room, len(batches)) // in the order of their pairs of keys
	for i, b := range batches {
		calls[i], rooms[i] = r.applyPresenceCall(b)
	}
	_ = r.run(ctx, opPresence, calls...) // the calls have their errors
	for i, c := range calls {
		batches[i].err = c.err
		reply, _ := c.value.([]any)
		for _, v := range reply {
			pair, _ := v.(int64)
			switch {
			case pair < 0:
				batches[i].lost = true
			case pair >= 1 && int(pair) <= len(rooms[i]):
				batches[i].changedRooms = append(batches[i].changedRooms, rooms[i][pair-1])
			}
		}
	}
}

// applyPresenceCall returns the call for a batch, and the rooms of its keys: the
// script numbers the pairs of keys from 1.
func (r *redisBackend) applyPresenceCall(b *presenceBatch) (*call, []message.Room) {
	c := &call{script: applyPresenceScript, keys: r.tagKeys(b.shard, b.tag), args: []any{b.tag, b.minRevision, b.revision}}
	var rooms []message.Room
	pairs := make(map[message.Room]int, len(b.changes))
	for _, change := range b.changes {
		if pairs[change.room] == 0 {
			rooms = append(rooms, change.room)
			pairs[change.room] = len(rooms)
			c.keys = append(c.keys, r.roomKeys(change.room)...)
		}
		present := 0
		if change.present {
			present = 1
		}
		c.args = append(c.args,
			pairs[change.room], string(change.room), present, string(change.session), change.generation, change.user)
	}
	return c, rooms
}

func (r *redisBackend) roomPresence(
	ctx context.Context, room message.Room, alive map[string]bool, limit int,
) (message.Presence, error) {
	c := &call{script: roomPresenceScript, keys: r.roomKeys(room), args: []any{limit, maxScannedEntries}}
	for node := range alive {
		c.args = append(c.args, node)
	}
	if err := r.runBatched(ctx, c); err != nil {
		return message.Presence{}, fmt.Errorf("read the presence of a room: %w", err)
	}
	reply, _ := c.value.([]any)
	if len(reply) == 0 {
		return message.Presence{}, fmt.Errorf("read the presence of a room: the reply is empty")
	}
	if len(reply) == 1 {
		count, _ := reply[0].(int64)
		return message.Presence{Count: int(count)}, nil
	}
	entries := []message.PresenceEntry{}
	all, _ := reply[1].([]any)
	for i := 0; i+1 < len(all); i += 2 {
		session, _ := all[i].(string)
		value, _ := all[i+1].(string)
		_, rest, _ := strings.Cut(value, " ")
		tag, user, _ := strings.Cut(rest, " ")
		if alive[nodeOf(tag)] {
			entries = append(entries, message.PresenceEntry{Session: message.SessionID(session), User: user})
		}
	}
	return presenceOf(entries, limit), nil
}

// presenceOf returns the entries sorted by session, or only their count if there
// are more than limit.
func presenceOf(entries []message.PresenceEntry, limit int) message.Presence {
	if len(entries) > limit {
		return message.Presence{Count: len(entries)}
	}
	slices.SortFunc(entries, func(a, b message.PresenceEntry) int { return cmp.Compare(a.Session, b.Session) })
	return message.Presence{Count: len(entries), Entries: entries}
}

func (r *redisBackend) tags(ctx context.Context) ([]map[string]int64, error) {
	calls := make([]*call, shardCount)
	for i := range calls {
		calls[i] = &call{script: tagsScript, keys: []string{r.shardKey(i, "tags")}}
	}
	err := r.run(ctx, opPresence, calls...)
	all := make([]map[string]int64, shardCount)
	for i, c := range calls {
		if c.err != nil {
			continue // all[i] stays nil
		}
		all[i] = make(map[string]int64)
		flat, _ := c.value.([]any)
		for j := 0; j+1 < len(flat); j += 2 {
			tag, _ := flat[j].(string)
			text, _ := flat[j+1].(string)
			revision, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				revision = -1 // a word: the tag is being swept
			}
			all[i][tag] = revision
		}
	}
	return all, err
}

func (r *redisBackend) sweep(ctx context.Context, shard int, tag string) (more, removed bool, err error) {
	c := &call{script: sweepScript, keys: r.tagKeys(shard, tag), args: []any{tag, sweepRoomsPerCall}}
	if err := r.run(ctx, opSweep, c); err != nil {
		return true, false, fmt.Errorf("sweep a stale tag: %w", err)
	}
	rooms, _ := c.value.([]any)
	for _, v := range rooms {
		name, _ := v.(string)
		keys := append(r.roomKeys(message.Room(name)), r.tagKeys(shard, tag)[1])
		for cursor := "0"; ; {
			c := &call{script: sweepRoomScript, keys: keys, args: []any{tag, name, cursor, sweepPageSize}}
			if err := r.run(ctx, opSweep, c); err != nil {
				return true, false, fmt.Errorf("sweep a stale tag: %w", err)
			}
			if cursor, _ = c.value.(string); cursor == "0" || cursor == "" {
				break
			}
		}
	}
	count, _ := c.value.(int64)
	return len(rooms) > 0, count == 1, nil
}
