package sharedstate

import (
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// coalesceInterval is how often at most a room's change is told.
	coalesceInterval = time.Second
	// coalesceDelay is how much later than it happened a first change is told.
	coalesceDelay = 50 * time.Millisecond
	// maxPendingRooms bounds the rooms that wait for it; over it, all are meant.
	maxPendingRooms = 10_000
	// roomsPerEvent is how many rooms one notice names.
	roomsPerEvent = 256
)

// changeCoalescer tell all nodes in which rooms the presence has changed, for those
// whose clients watch it. They are gathered: each room once in coalesceInterval.
type changeCoalescer struct {
	node *Node
	wake chan struct{} // holds a token when there may be something to tell

	mu        sync.Mutex // Protects following.
	due       map[message.Room]time.Time
	lastSent  map[message.Room]time.Time // when it was told, for coalesceInterval
	allRooms  bool
	allSentAt time.Time // when all was told last
}

// add has rooms told after a while, or as soon as they may be again.
func (k *changeCoalescer) add(after time.Duration, rooms ...message.Room) {
	if len(rooms) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.due == nil {
		k.due, k.lastSent = make(map[message.Room]time.Time), make(map[message.Room]time.Time)
	}
	now := time.Now()
	for _, room := range rooms {
		at := now.Add(after)
		if next := k.lastSent[room].Add(coalesceInterval); next.After(at) {
			at = next
		}
		if old, known := k.due[room]; !known || at.Before(old) {
			k.due[room] = at
		}
	}
	if len(k.due) > maxPendingRooms {
		k.node.metrics.drop(dropCoalescerFull, len(k.due))
		clear(k.due)
		k.allRooms = true
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// dequeueDue returns the rooms to be told now; all means any room, and more that
// there are others whose time has not come.
func (k *changeCoalescer) dequeueDue(now time.Time) (rooms []message.Room, all, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for room, at := range k.lastSent {
		if now.Sub(at) > coalesceInterval {
			delete(k.lastSent, room)
		}
	}
	if k.allRooms && now.Sub(k.allSentAt) >= coalesceInterval {
		all, k.allRooms, k.allSentAt = true, false, now
	}
	for room, at := range k.due {
		if at.After(now) {
			continue
		}
		delete(k.due, room)
		k.lastSent[room] = now
		rooms = append(rooms, room)
	}
	return rooms, all, k.allRooms || len(k.due) > 0
}

// coalesceLoop tells what is due.
func (n *Node) coalesceLoop(ctx context.Context) {
	for {
		select {
		case <-n.presence.coalescer.wake:
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case <-time.After(coalesceDelay): // and what else changes meanwhile
			case <-ctx.Done():
				return
			}
			more = n.sendDueChanges(time.Now())
		}
	}
}

// sendDueChanges tells what is due now, and says whether something is left.
func (n *Node) sendDueChanges(now time.Time) (more bool) {
	rooms, all, more := n.presence.coalescer.dequeueDue(now)
	if all {
		n.sendEvent("", message.NodeEvent{Kind: message.EventPresenceChanged})
	}
	for len(rooms) > 0 {
		part := rooms[:min(len(rooms), roomsPerEvent)]
		rooms = rooms[len(part):]
		n.sendEvent("", message.NodeEvent{Kind: message.EventPresenceChanged, Rooms: part})
	}
	return more
}
