package sharedstate

import (
	"context"
	"slices"
	"time"
)

const (
	// sweepAfter is how long a node must not have been seen alive before what it
	// left behind is removed. Its members do not count long before.
	sweepAfter = 2 * nodeExpiry
	// sweepPause lies between two parts of it.
	sweepPause = 20 * time.Millisecond
)

// A staleTag is a tag that nobody uses any more, in one shard.
type staleTag struct {
	shard int
	tag   string
}

// findStaleTags looks for leftovers among the tags of all shards, and gives those
// that are this node's to remove to sweepLoop: its own, and its share of those
// of dead nodes.
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
			l := staleTag{shard, tag}
			if n.isOldTag(shard, tag) {
				due = append(due, l)
				continue
			}
			if alive[nodeOf(tag)] {
				continue
			}
			since, seen := n.deadSince[l]
			if !seen {
				since = now
			}
			dead[l] = since
			if now.Sub(since) > sweepAfter && sweepers[shard%len(sweepers)] == n.cfg.Node {
				due = append(due, l)
			}
		}
	}
	n.deadSince = dead
	if len(due) > 0 {
		select {
		case n.sweeps <- due:
		default: // it is still at work, and will be told again
		}
	}
}

// isOldTag says whether this node has begun the shard anew since.
func (n *Node) isOldTag(shard int, tag string) bool {
	return nodeOf(tag) == n.cfg.Node && tagNumber(tag) < n.presence.shards[shard].tagNumber
}

// sweepLoop removes leftovers, a little at a time.
func (n *Node) sweepLoop(ctx context.Context) {
	for {
		select {
		case due := <-n.sweeps:
			for _, l := range due {
				n.sweep(ctx, l)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) sweep(ctx context.Context, l staleTag) {
	for ctx.Err() == nil {
		more, removed, err := n.backend.sweep(ctx, l.shard, l.tag)
		if err != nil {
			return // it is found again
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
