package sharedstate

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// renewEvery is the time between two renewals of the connections for commands.
const renewEvery = 3 * time.Second

// renewNow makes renewLoop renew the connections at once: the server has become a
// replica. It never blocks.
func (r *redisBackend) renewNow() {
	select {
	case r.renew <- struct{}{}:
	default:
	}
}

// renewLoop replaces the connections for commands every few seconds. After a
// failover, or when a name or a proxy leads to another server, the old server
// still answers the old connections: as a replica, which takes the events of this
// node and passes them on to no other server, or as a primary that the other
// nodes have left. Only a new connection finds the present server. It returns
// when the backend closes.
func (r *redisBackend) renewLoop() {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.renew:
		case <-r.ctx.Done():
			return
		}
		r.renewClient()
	}
}

// renewClient replaces the client by a new one, unless that fails to connect to a
// primary.
func (r *redisBackend) renewClient() {
	opts := r.opts
	next := redis.NewUniversalClient(&opts)
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	if next.Ping(ctx).Err() != nil {
		_ = next.Close() // the calls notice and log an outage
		return
	}
	old := r.client.Swap(&next)
	select { // calls that use it end by then
	case <-time.After(r.timeout):
	case <-r.ctx.Done():
	}
	_ = (*old).Close()
}
