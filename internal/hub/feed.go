package hub

import (
	"context"
	"time"

	"switchyard/internal/message"
)

// headsPage is how many rooms are compared by name at a time.
const headsPage = 500

// feedLoop reads the commit feed, broker up or down: it finds a lost last
// message, and carries delivery when the broker is gone or was never there. Its
// cost follows what is committed, not how many rooms are live. The cursor moves
// only when what was told has reached the topics: what failed is asked again.
func (h *Hub) feedLoop() {
	tick := time.NewTicker(h.cfg.FeedInterval)
	defer tick.Stop()
	// Cursor 0 asks for the feed's end; epoch "" is that of no answer yet.
	var cursor message.Cursor
	var epoch message.Epoch
	for failed := false; ; {
		commits, err := h.readCommits(cursor)
		switch {
		case err != nil:
			if !failed && h.ctx.Err() == nil { // one line an outage
				h.logger.Warn("commit feed not read", "error", err)
			}
			failed = true
		default:
			failed = false
			if h.applyCommits(&commits, epoch) {
				cursor, epoch = commits.Next, commits.Epoch
			}
		}
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readCommits asks the feed, bounded in time.
func (h *Hub) readCommits(cursor message.Cursor) (message.Commits, error) {
	ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
	defer cancel()
	return h.cfg.Feed.Commits(ctx, cursor)
}

// applyCommits tells topics what was committed; false: it could not, ask again. The
// first answer begins at its own moment: a room may be live since before it, on
// a node whose feed came up late.
func (h *Hub) applyCommits(c *message.Commits, epoch message.Epoch) bool {
	if c.Incomplete || c.Epoch != epoch {
		return h.compareHeads()
	}
	for _, head := range c.Heads {
		h.notifyTopic(head, c.Epoch)
	}
	return true
}

// notifyTopic has a room's topic hear how far the log is. A head that was read before
// messages came by another way is below the topic's own position, and no news.
func (h *Hub) notifyTopic(head message.Head, epoch message.Epoch) {
	t := h.lookup(head.Room)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recordCommitted(epoch, head.Seq)
	t.scheduleRepair(causeFeed)
}

// compareRoomHeads asks for the heads of all live rooms by name, a page at a time,
// after an absence longer than the feed reaches back or in a new epoch. Rooms
// that open meanwhile are not missed: they ask the log for themselves. The pages
// are paced, so that a node that comes back is no burst for the database.
func (h *Hub) compareHeads() bool {
	var rooms []message.Room
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.RLock()
		for room := range s.topics {
			rooms = append(rooms, room)
		}
		s.mu.RUnlock()
	}
	for len(rooms) > 0 {
		n := min(headsPage, len(rooms))
		ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
		epoch, heads, err := h.cfg.Feed.Heads(ctx, rooms[:n])
		cancel()
		if err != nil {
			h.logger.Warn("heads not read", "error", err)
			return false
		}
		for _, head := range heads {
			h.notifyTopic(head, epoch)
		}
		rooms = rooms[n:]
		// So 5,000 rooms take a tenth of a second at least.
		if !h.sleep(10 * time.Millisecond) {
			return false
		}
	}
	return true
}
