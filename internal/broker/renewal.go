package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"math/bits"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// renewEvery is the time between two renewals of a publisher's connection.
const renewEvery = 3 * time.Second

// errMoved ends a connection whose address leads to another server now.
var errMoved = errors.New("the address leads to another server now")

// newProbeRoom returns the name of the room that a subscriber is subscribed to,
// so that a renewal can find out whether the publisher's server has this
// subscriber. No room of clients has a slash at its beginning.
func newProbeRoom() message.Room { return message.Room("/probe/" + rand.Text()) }

// A renewal replaces a publisher's connection by a new one every few seconds.
// After a failover, or when a name or a proxy leads to another server, the old
// server still answers the old connections: as a replica, or as a primary that
// the other nodes have left. Only a new connection finds the server that a node
// finds which starts now. It belongs to one goroutine.
type renewal struct {
	publisher  *publisher
	subscriber *subscriber
	newClient  func() *redis.Client
	every      time.Duration

	client   *redis.Client // the publisher's, which closes it when it gets the next
	misses   uint          // consecutive renewals that did not find the subscriber
	failures int           // consecutive renewals that failed
}

// loop renews the connection until ctx ends.
func (n *renewal) loop(ctx context.Context) {
	tick := time.NewTicker(n.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		// Without a probe subscription the subscriber is about to connect anew
		// itself, or has just done so.
		connection := n.subscriber.connection.Load()
		if n.publisher.up() && n.subscriber.rooms.isConfirmed(n.subscriber.probe) {
			n.renew(ctx, connection)
		} else {
			n.failures = 0
		}
	}
}

// renew makes a new connection, finds out whether it leads to the server of the
// subscriber, and gives it to the publisher. The present one is kept if the new
// one fails, unless it leads to a replica.
func (n *renewal) renew(ctx context.Context, connection int64) {
	next := n.newClient()
	subscribers, err := next.Publish(ctx, n.subscriber.prefix+string(n.subscriber.probe), "").Result()
	switch {
	case err != nil && errors.Is(err, errReplica) && n.leadsToReplica(ctx):
		n.subscriber.abandon(connection, errReplica)
	case err != nil:
		_ = next.Close()
		n.logFailure(ctx, err)
		return
	case subscribers > 0:
		n.misses = 0
	default:
		// Some services do not count the subscribers: so each miss in a row makes
		// the next reconnect later.
		if n.misses++; bits.OnesCount(n.misses) == 1 {
			n.subscriber.abandon(connection, errMoved)
		}
	}
	n.failures = 0
	select {
	case n.publisher.next <- next:
		n.client = next
	case <-ctx.Done():
		_ = next.Close()
	}
}

// leadsToReplica reports whether the publisher's present connection leads to a
// replica.
func (n *renewal) leadsToReplica(ctx context.Context) bool {
	conn := n.client.Conn()
	defer func() { _ = conn.Close() }()
	return errors.Is(refuseReplica(ctx, conn), errReplica)
}

// logFailure logs once why no new connection can be made. The first failure may be
// the beginning of an outage, which the subscriber notices and logs.
func (n *renewal) logFailure(ctx context.Context, err error) {
	if n.failures++; n.failures == 2 && ctx.Err() == nil {
		n.publisher.logger.Warn("Redis accepts no new connection; the present one is kept", "addr", n.client.Options().Addr, "error", err)
	}
}
