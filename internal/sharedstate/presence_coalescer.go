package sharedstate

import (
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// coalesceInterval is the least time between two events about one room.
	coalesceInterval = time.Second
	// coalesceDelay is the delay of the first event about a room.
	coalesceDelay = 50 * time.Millisecond
	// maxPendingRooms bounds the rooms that wait for their event. Beyond it, one
	// event without rooms stands for all rooms.
	maxPendingRooms = 10_000
	// roomsPerEvent bounds the rooms that one event names.
	roomsPerEvent = 256
)

// A changeCoalescer sends EventPresenceChanged to all nodes, for those whose
// clients watch presence: for each room at most once in coalesceInterval. It is
// safe for concurrent use.
type changeCoalescer struct {
	node *Node
	wake chan struct{} // holds a token when there may be rooms to send; never closed

	mu        sync.Mutex                 // Protects following.
	due       map[message.Room]time.Time // when the event about a room is due
	lastSent  map[message.Room]time.Time // when it was last sent, kept for coalesceInterval
	allRooms  bool                       // the event without rooms is due
	allSentAt time.Time                  // when the event without rooms was last sent
}

// add makes the events about rooms due after a delay, or later where
// coalesceInterval demands it.
func (c *changeCoalescer) add(after time.Duration, rooms ...message.Room) {
	if len(rooms) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.due == nil {
		c.due, c.lastSent = make(map[message.Room]time.Time), make(map[message.Room]time.Time)
	}
	now := time.Now()
	for _, room := range rooms {
		at := now.Add(after)
		if next := c.lastSent[room].Add(coalesceInterval); next.After(at) {
			at = next
		}
		if old, known := c.due[room]; !known || at.Before(old) {
			c.due[room] = at
		}
	}
	if len(c.due) > maxPendingRooms {
		c.node.metrics.drop(dropCoalescerFull, len(c.due))
		clear(c.due)
		c.allRooms = true
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// dequeueDue removes and returns the rooms whose events are due. all reports that
// the event without rooms is due, and more that others will be due later.
func (c *changeCoalescer) dequeueDue(now time.Time) (rooms []message.Room, all, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for room, at := range c.lastSent {
		if now.Sub(at) > coalesceInterval {
			delete(c.lastSent, room)
		}
	}
	if c.allRooms && now.Sub(c.allSentAt) >= coalesceInterval {
		all, c.allRooms, c.allSentAt = true, false, now
	}
	for room, at := range c.due {
		if at.After(now) {
			continue
		}
		delete(c.due, room)
		c.lastSent[room] = now
		rooms = append(rooms, room)
	}
	return rooms, all, c.allRooms || len(c.due) > 0
}

// coalesceLoop sends the events that are due.
func (n *Node) coalesceLoop(ctx context.Context) {
	for {
		select {
		case <-n.presence.coalescer.wake:
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case <-time.After(coalesceDelay): // to gather more changes
			case <-ctx.Done():
				return
			}
			more = n.sendDueChanges(time.Now())
		}
	}
}

// sendDueChanges sends the events that are due, and reports whether others will
// be due later.
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
