package session

import (
	"context"
	"slices"
	"time"
)

const (
	// deadAfter is how long a node must not have been seen alive before what it
	// left behind is removed. Its members do not count long before.
	deadAfter = 2 * nodeExpiry
	// sweepPause lies between two parts of it.
	sweepPause = 20 * time.Millisecond
)

// A leftover is a tag that nobody uses any more, in one shard.
type leftover struct {
	shard int
	tag   string
}

// findDead looks for leftovers among the tags of all shards, and gives those
// that are this node's to remove to sweepLoop: its own, and its share of those
// of dead nodes.
func (n *Node) findDead(all []map[string]int64) {
	alive, known := n.fleet.alive()
	if !known {
		return
	}
	alive[n.cfg.Node] = true
	janitors := make([]string, 0, len(alive))
	for node := range alive {
		janitors = append(janitors, node)
	}
	slices.Sort(janitors)
	now := time.Now()
	dead := make(map[leftover]time.Time)
	var due []leftover
	for shard, tags := range all {
		for tag := range tags {
			l := leftover{shard, tag}
			if n.isOldTag(shard, tag) {
				due = append(due, l)
				continue
			}
			if alive[nodeOf(tag)] {
				continue
			}
			since, seen := n.dead[l]
			if !seen {
				since = now
			}
			dead[l] = since
			if now.Sub(since) > deadAfter && janitors[shard%len(janitors)] == n.cfg.Node {
				due = append(due, l)
			}
		}
	}
	n.dead = dead
	if len(due) > 0 {
		select {
		case n.sweeps <- due:
		default: // it is still at work, and will be told again
		}
	}
}

// isOldTag says whether this node has begun the shard anew since.
func (n *Node) isOldTag(shard int, tag string) bool {
	return nodeOf(tag) == n.cfg.Node && tagNumber(tag) < n.presence.shards[shard].number
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

func (n *Node) sweep(ctx context.Context, l leftover) {
	for ctx.Err() == nil {
		left, gone, err := n.space.sweep(ctx, l.shard, l.tag)
		if err != nil {
			return // it is found again
		}
		if gone {
			n.metrics.swept.Inc()
		}
		if !left {
			return
		}
		select {
		case <-time.After(sweepPause):
		case <-ctx.Done():
		}
	}
}
