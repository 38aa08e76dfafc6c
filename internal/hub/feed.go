package hub

import (
	"context"
	"time"

	"switchyard/internal/message"
)

// headsPage is the number of rooms in one query for heads.
const headsPage = 500

// feedLoop reads the commit feed, whether the broker works or not. So a lost
// last message is noticed, and messages are delivered even without a broker.
// Its cost depends on what is committed, not on the number of live rooms. The
// cursor advances only when the topics have everything up to it; otherwise the
// next read repeats it.
func (h *Hub) feedLoop() {
	tick := time.NewTicker(h.cfg.FeedInterval)
	defer tick.Stop()
	// Cursor "" is the feed's present end. Epoch "" means that no read has
	// succeeded.
	var cursor message.Cursor
	var epoch message.Epoch
	for failed := false; ; {
		commits, err := h.readCommits(cursor)
		switch {
		case err != nil:
			if !failed && h.ctx.Err() == nil { // one line per outage
				h.logger.Warn("commit feed not read", "error", err)
			}
			failed = true
		default:
			failed = false
			h.feedEpoch.Store(commits.Epoch)
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

// Epoch returns the epoch of the log, "" before the commit feed was first read.
func (h *Hub) Epoch() message.Epoch {
	epoch, _ := h.feedEpoch.Load().(message.Epoch)
	return epoch
}

// readCommits reads the feed with a timeout.
func (h *Hub) readCommits(cursor message.Cursor) (message.Commits, error) {
	ctx, cancel := context.WithTimeout(h.ctx, logTimeout)
	defer cancel()
	return h.cfg.Feed.Commits(ctx, cursor)
}

// applyCommits notifies the topics of what was committed. It returns false if
// the same part of the feed must be read again. The first read begins at the
// feed's present end, and rooms may have become live before it, so applyCommits
// compares the heads.
func (h *Hub) applyCommits(c *message.Commits, epoch message.Epoch) bool {
	if c.Incomplete || c.Epoch != epoch {
		return h.compareHeads()
	}
	for _, head := range c.Heads {
		h.notifyTopic(head, c.Epoch)
	}
	return true
}

// notifyTopic records in a room's topic how far the log is, and starts a repair
// if the topic is behind. A head below the topic's position changes nothing:
// the messages arrived by another path after the head was read.
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

// compareHeads reads the heads of all live rooms by name, headsPage at a time,
// after an outage longer than the feed reaches back or in a new epoch. Rooms
// that open meanwhile are not included, because they read the log themselves.
// It pauses between the queries, so that a returning node does not flood the
// database.
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
		// 5,000 rooms take at least a tenth of a second.
		if !h.sleep(10 * time.Millisecond) {
			return false
		}
	}
	return true
}
