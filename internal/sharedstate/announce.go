package sharedstate

import (
	"context"
	"encoding/json"
	"time"

	"switchyard/internal/message"
)

// announceInterval is the time between two announcements of a node.
const announceInterval = 5 * time.Second

// An otherLog is what this node knows of nodes that announce another epoch.
type otherLog struct {
	since, last time.Time // of the first and the last of their announcements in a row
	logged      bool
}

// announceLoop announces to all nodes the epoch of this node's log: each deployment has
// a log of its own, and two of them must not share the keys and channels of one prefix.
// Pub/sub ignores the number of the database, so this finds them where keys would not.
func (n *Node) announceLoop(ctx context.Context) {
	tick := time.NewTicker(n.cfg.announceEvery)
	defer tick.Stop()
	for {
		if epoch := n.epoch(); epoch != "" {
			payload, err := json.Marshal(wireEnvelope{From: n.cfg.Node, Epoch: epoch})
			if err != nil {
				panic(err) // not possible: strings only
			}
			_ = n.backend.send(ctx, []envelope{{payload: payload}}) // the next one follows
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// epoch returns the epoch of this node's log, "" while it is unknown.
func (n *Node) epoch() message.Epoch {
	if h := n.hooks.Load(); h != nil && h.Epoch != nil {
		return h.Epoch()
	}
	return ""
}

// checkLog warns once if nodes announce another epoch for longer than two announcements
// take. The nodes of one log learn of a new epoch within a second or so.
func (n *Node) checkLog(from string, epoch message.Epoch) {
	ours := n.epoch()
	if ours == "" || ours == epoch {
		return
	}
	o, now, long := &n.otherLog, time.Now(), 2*n.cfg.announceEvery
	if now.Sub(o.last) > long {
		*o = otherLog{since: now}
	}
	o.last = now
	if !o.logged && now.Sub(o.since) >= long {
		o.logged = true
		n.log.Warn("nodes of another log use this Redis with the same REDIS_PREFIX: bans, sessions and signals cross; give each deployment a prefix of its own",
			"prefix", n.cfg.Prefix, "node", from, "epoch", epoch, "own_epoch", ours)
	}
}
