package sharedstate

import (
	"context"
	"slices"
	"time"
)

const (
	// sweepAfter is how long a node must count as dead before its entries are
	// removed. They do not count any more from the beginning of that time.
	sweepAfter = 2 * nodeExpiry
	// sweepPause is the pause between two calls of a sweep.
	sweepPause = 20 * time.Millisecond
)

// A staleTag is a tag of one shard that no node uses any more.
type staleTag struct {
	shard int
	tag   string
}

// findStaleTags looks for stale tags among those of all shards. It passes to
// sweepLoop its own, and those of dead nodes in its share of the shards: the
// alive nodes share the shards by the order of their names.
func (n *Node) findStaleTags(all []map[string]int64) {
	alive, known := n.nodes.alive()
	if !known {
		return
	}
	alive[n.cfg.Node] = true
	sweepers := make([]string, 0, len(alive))
	for node := range alive {
		sweepers = append(sweepers, node)
	}
	slices.Sort(sweepers)
	now := time.Now()
	dead := make(map[staleTag]time.Time)
	var due []staleTag
	for shard, tags := range all {
		for tag := range tags {
			stale := staleTag{shard, tag}
			if n.isOldTag(shard, tag) {
				due = append(due, stale)
				continue
			}
			if alive[nodeOf(tag)] {
				continue
			}
			since, seen := n.deadSince[stale]
			if !seen {
				since = now
			}
			dead[stale] = since
			if now.Sub(since) > n.cfg.sweepDelay && sweepers[shard%len(sweepers)] == n.cfg.Node {
				due = append(due, stale)
			}
		}
	}
	n.deadSince = dead
	if len(due) > 0 {
		select {
		case n.sweeps <- due:
		default: // sweepLoop is busy; the next check finds the tags again
		}
	}
}

// isOldTag reports whether a tag is this node's and a resync has replaced it.
func (n *Node) isOldTag(shard int, tag string) bool {
	return nodeOf(tag) == n.cfg.Node && tagNumber(tag) < n.presence.shards[shard].tagNumber
}

// sweepLoop removes the entries of stale tags, in small parts.
func (n *Node) sweepLoop(ctx context.Context) {
	for {
		select {
		case due := <-n.sweeps:
			for _, stale := range due {
				n.sweep(ctx, stale)
			}
		case <-ctx.Done():
			return
		}
	}
}

// sweep removes the entries of one stale tag, and then the tag.
func (n *Node) sweep(ctx context.Context, stale staleTag) {
	for ctx.Err() == nil {
		more, removed, err := n.backend.sweep(ctx, stale.shard, stale.tag)
		if err != nil {
			return // the next check finds the tag again
		}
		if removed {
			n.metrics.sweeps.Inc()
		}
		if !more {
			return
		}
		select {
		case <-time.After(sweepPause):
		case <-ctx.Done():
		}
	}
}
