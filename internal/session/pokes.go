package session

import (
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// pokeEvery is how often at most a room's change is told.
	pokeEvery = time.Second
	// pokeTick is how much later than it happened a first change is told.
	pokeTick = 50 * time.Millisecond
	// maxPokes bounds the rooms that wait for it; over it, all are meant.
	maxPokes = 10_000
	// pokeRooms is how many rooms one notice names.
	pokeRooms = 256
)

// pokes tell all nodes in which rooms the presence has changed, for those
// whose clients watch it. They are gathered: each room once in pokeEvery.
type pokes struct {
	node *Node
	wake chan struct{} // holds a token when there may be something to tell

	mu   sync.Mutex // Protects following.
	due  map[message.Room]time.Time
	last map[message.Room]time.Time // when it was told, for pokeEvery
	all  bool
	told time.Time // when all was told last
}

// add has rooms told after a while, or as soon as they may be again.
func (k *pokes) add(after time.Duration, rooms ...message.Room) {
	if len(rooms) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.due == nil {
		k.due, k.last = make(map[message.Room]time.Time), make(map[message.Room]time.Time)
	}
	now := time.Now()
	for _, room := range rooms {
		at := now.Add(after)
		if next := k.last[room].Add(pokeEvery); next.After(at) {
			at = next
		}
		if old, known := k.due[room]; !known || at.Before(old) {
			k.due[room] = at
		}
	}
	if len(k.due) > maxPokes {
		k.node.metrics.drop(dropPokes, len(k.due))
		clear(k.due)
		k.all = true
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// take returns the rooms to be told now; all means any room, and more that
// there are others whose time has not come.
func (k *pokes) take(now time.Time) (rooms []message.Room, all, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for room, at := range k.last {
		if now.Sub(at) > pokeEvery {
			delete(k.last, room)
		}
	}
	if k.all && now.Sub(k.told) >= pokeEvery {
		all, k.all, k.told = true, false, now
	}
	for room, at := range k.due {
		if at.After(now) {
			continue
		}
		delete(k.due, room)
		k.last[room] = now
		rooms = append(rooms, room)
	}
	return rooms, all, k.all || len(k.due) > 0
}

// pokeLoop tells what is due.
func (n *Node) pokeLoop(ctx context.Context) {
	for {
		select {
		case <-n.presence.pokes.wake:
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case <-time.After(pokeTick): // and what else changes meanwhile
			case <-ctx.Done():
				return
			}
			more = n.poke(time.Now())
		}
	}
}

// poke tells what is due now, and says whether something is left.
func (n *Node) poke(now time.Time) (more bool) {
	rooms, all, more := n.presence.pokes.take(now)
	if all {
		n.tell("", message.Notice{Kind: message.NoticePresence})
	}
	for len(rooms) > 0 {
		part := rooms[:min(len(rooms), pokeRooms)]
		rooms = rooms[len(part):]
		n.tell("", message.Notice{Kind: message.NoticePresence, Rooms: part})
	}
	return more
}
