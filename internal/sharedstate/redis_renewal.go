package sharedstate

import (
	"context"
	"math/bits"
	"time"

	"github.com/redis/go-redis/v9"
)

// renewEvery is the time between two checks of where a new connection leads.
const renewEvery = 3 * time.Second

// renewNow makes renewLoop check at once: the server has become a replica. It never blocks.
func (r *redisBackend) renewNow() {
	select {
	case r.renew <- struct{}{}:
	default:
	}
}

// renewLoop checks every few seconds where a new connection leads. After a failover,
// or when a name or a proxy leads to another server, the old server still answers the
// old connections: as a replica, which takes the events of this node and passes them
// on to no other server, or as a primary that the other nodes have left. It returns
// when the backend closes.
func (r *redisBackend) renewLoop() {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	var misses uint // consecutive checks that did not find the receiving connection
	for {
		select {
		case <-tick.C:
			if r.listening.Load() == nil {
				misses = 0
				continue // the receiving connection is about to be made anew itself
			}
		case <-r.renew:
		case <-r.ctx.Done():
			return
		}
		if r.renewClient() {
			misses = 0
			continue
		}
		// Some services do not count subscribers: so each miss in a row makes the next
		// reconnect later.
		if misses++; bits.OnesCount(misses) == 1 {
			select {
			case r.relisten <- struct{}{}:
			default:
			}
		}
	}
}

// renewClient makes a new connection, and the connections for commands anew unless
// both lead to the server of the receiving connection. It returns false if the new
// one leads to another server than that. While no new connection to a primary can be
// made, the present ones are kept.
func (r *redisBackend) renewClient() (found bool) {
	next := r.newClient()
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	there, err := r.countListeners(ctx, next)
	if err != nil {
		_ = next.Close() // the calls notice and log an outage
		return true
	}
	if here, err := r.countListeners(ctx, *r.client.Load()); err == nil && there > 0 && here > 0 {
		_ = next.Close()
		return true
	}
	old := r.client.Swap(&next)
	select { // calls that use it end by then
	case <-time.After(r.timeout):
	case <-r.ctx.Done():
	}
	_ = (*old).Close()
	return there > 0
}

// countListeners publishes a probe to this node, and returns how many receiving
// connections of it the client's server has.
func (r *redisBackend) countListeners(ctx context.Context, client redis.UniversalClient) (int64, error) {
	node := r.listening.Load()
	if node == nil {
		return 0, client.Ping(ctx).Err()
	}
	return client.Publish(ctx, r.channel(*node), "").Result()
}
