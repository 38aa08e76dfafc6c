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

	mu   sync.Mutex // Protects following.
	due  map[message.Room]time.Time
	last map[message.Room]time.Time // when it was told, for pokeEvery
	all  bool
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
}

// take returns the rooms to be told now; all means any room.
func (k *pokes) take(now time.Time) (rooms []message.Room, all bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for room, at := range k.last {
		if now.Sub(at) > pokeEvery {
			delete(k.last, room)
		}
	}
	all, k.all = k.all, false
	for room, at := range k.due {
		if at.After(now) {
			continue
		}
		delete(k.due, room)
		k.last[room] = now
		rooms = append(rooms, room)
	}
	return rooms, all
}

// pokeLoop tells what is due.
func (n *Node) pokeLoop(ctx context.Context) {
	tick := time.NewTicker(pokeTick)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			n.poke(now)
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) poke(now time.Time) {
	rooms, all := n.presence.pokes.take(now)
	if all {
		n.tell("", message.Notice{Kind: message.NoticePresence})
	}
	for len(rooms) > 0 {
		part := rooms[:min(len(rooms), pokeRooms)]
		rooms = rooms[len(part):]
		n.tell("", message.Notice{Kind: message.NoticePresence, Rooms: part})
	}
}
