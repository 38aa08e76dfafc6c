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
	applyPresenceScript = script("present")
	roomPresenceScript  = script("room")
	tagsScript          = script("tags")
	sweepScript         = script("sweep")
	sweepRoomScript     = script("sweep_room")
)

const (
	// maxScannedEntries is how many sessions a room may hold, those of dead nodes
	// with them, for its members still to be listed.
	maxScannedEntries = 20_000
	// sweepRoomsPerCall and sweepPageSize bound what one script removes.
	sweepRoomsPerCall = 16
	sweepPageSize     = 200
)

// shardKey is a key of a shard's slot. A room is always in the same shard, so
// nodes of all versions that share a Redis must agree on it.
func (r *redisBackend) shardKey(shard int, name string) string {
	return fmt.Sprintf("%s{p%02d}:%s", r.prefix, shard, name)
}

func (r *redisBackend) tagKeys(shard int, tag string) []string {
	return []string{r.shardKey(shard, "tags"), r.shardKey(shard, "rooms:"+tag)}
}

func (r *redisBackend) roomKeys(room message.Room) []string {
	shard := shardOf(room)
	return []string{r.shardKey(shard, "who:"+string(room)), r.shardKey(shard, "count:"+string(room))}
}

func (r *redisBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	calls := make([]*call, len(batches))
	order := make([][]message.Room, len(batches)) // of the pairs of keys
	for i, l := range batches {
		c := &call{script: applyPresenceScript, keys: r.tagKeys(l.shard, l.tag), args: []any{l.tag, l.minRevision, l.revision}}
		pairs := make(map[message.Room]int, len(l.changes))
		for _, ch := range l.changes {
			if pairs[ch.room] == 0 {
				order[i] = append(order[i], ch.room)
				pairs[ch.room] = len(order[i])
				c.keys = append(c.keys, r.roomKeys(ch.room)...)
			}
			present := 0
			if ch.present {
				present = 1
			}
			c.args = append(c.args, pairs[ch.room], string(ch.room), present, string(ch.session), ch.generation, ch.user)
		}
		calls[i] = c
	}
	_ = r.run(ctx, opPresence, calls...) // each call has its own error
	for i, c := range calls {
		batches[i].err = c.err
		answer, _ := c.value.([]any)
		for _, v := range answer {
			pair, _ := v.(int64)
			switch {
			case pair < 0:
				batches[i].lost = true
			case pair >= 1 && int(pair) <= len(order[i]):
				batches[i].changedRooms = append(batches[i].changedRooms, order[i][pair-1])
			}
		}
	}
}

func (r *redisBackend) roomPresence(
	ctx context.Context, room message.Room, alive map[string]bool, limit int,
) (message.Presence, error) {
	c := &call{script: roomPresenceScript, keys: r.roomKeys(room), args: []any{limit, maxScannedEntries}}
	for node := range alive {
		c.args = append(c.args, node)
	}
	if err := r.runBatched(ctx, c); err != nil {
		return message.Presence{}, fmt.Errorf("read who is in a room: %w", err)
	}
	answer, _ := c.value.([]any)
	if len(answer) == 0 {
		return message.Presence{}, fmt.Errorf("read who is in a room: no answer")
	}
	if len(answer) == 1 {
		count, _ := answer[0].(int64)
		return message.Presence{Count: int(count)}, nil
	}
	members := []message.PresenceEntry{}
	all, _ := answer[1].([]any)
	for i := 0; i+1 < len(all); i += 2 {
		session, _ := all[i].(string)
		value, _ := all[i+1].(string)
		_, rest, _ := strings.Cut(value, " ")
		tag, user, _ := strings.Cut(rest, " ")
		if alive[nodeOf(tag)] {
			members = append(members, message.PresenceEntry{Session: message.SessionID(session), User: user})
		}
	}
	return presenceOf(members, limit), nil
}

// presenceOf sorts members, and leaves only their number when they are too many.
func presenceOf(members []message.PresenceEntry, limit int) message.Presence {
	if len(members) > limit {
		return message.Presence{Count: len(members)}
	}
	slices.SortFunc(members, func(a, b message.PresenceEntry) int { return cmp.Compare(a.Session, b.Session) })
	return message.Presence{Count: len(members), Entries: members}
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
			continue // nil: not known
		}
		all[i] = make(map[string]int64)
		flat, _ := c.value.([]any)
		for j := 0; j+1 < len(flat); j += 2 {
			tag, _ := flat[j].(string)
			text, _ := flat[j+1].(string)
			revision, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				revision = -1 // it is being swept
			}
			all[i][tag] = revision
		}
	}
	return all, err
}

func (r *redisBackend) sweep(ctx context.Context, shard int, tag string) (more, removed bool, err error) {
	c := &call{script: sweepScript, keys: r.tagKeys(shard, tag), args: []any{tag, sweepRoomsPerCall}}
	if err := r.run(ctx, opSweep, c); err != nil {
		return true, false, fmt.Errorf("sweep after a node: %w", err)
	}
	rooms, _ := c.value.([]any)
	for _, v := range rooms {
		name, _ := v.(string)
		keys := append(r.roomKeys(message.Room(name)), r.tagKeys(shard, tag)[1])
		for cursor := "0"; ; {
			c := &call{script: sweepRoomScript, keys: keys, args: []any{tag, name, cursor, sweepPageSize}}
			if err := r.run(ctx, opSweep, c); err != nil {
				return true, false, fmt.Errorf("sweep after a node: %w", err)
			}
			if cursor, _ = c.value.(string); cursor == "0" || cursor == "" {
				break
			}
		}
	}
	count, _ := c.value.(int64)
	return len(rooms) > 0, count == 1, nil
}
