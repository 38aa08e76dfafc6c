package broker

import (
	"context"
	"math"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A server is one Redis server that owns buckets. It has a publisher with a
// queue of its own, so that a server in trouble delays only its own rooms.
type server struct {
	addr      string // host:port
	publisher *publisher
	// monitor is a connection without rooms that shows whether the server is
	// up. It is nil outside a cluster, where the subscriber of the only bucket
	// shows it.
	monitor *subscriber
	renewal *renewal        // nil in a cluster, whose servers announce every change themselves
	ctx     context.Context // ends when the loops must end
	cancel  context.CancelFunc
}

// newServer returns a server that start has not started yet. The caller holds
// r.mu.
func (r *Redis) newServer(addr string) *server {
	s := &server{addr: addr}
	s.ctx, s.cancel = context.WithCancel(r.ctx)
	queue := newQueue(r.queueSize)
	up := r.buckets[0].subscriber.rooms.isUp
	if r.sharded() {
		s.monitor = &subscriber{
			opts: r.config.server, logger: r.logger, metrics: r.metrics, rooms: newSubscriptions(),
			locate:   fixedAddr(addr),
			onChange: func() { r.updateHealth(); queue.notify(); r.reconnectSubscribers(s) },
		}
		up = s.monitor.rooms.isUp
	}
	newClient := func() *redis.Client { return redis.NewClient(withAddr(r.config.server, addr)) }
	s.publisher = &publisher{
		client: newClient(), next: make(chan *redis.Client, 1), sharded: r.sharded(), channel: r.channel,
		logger: r.logger, metrics: r.metrics, queue: queue, up: up, sendLoopDone: make(chan struct{}), reroute: r.reroute,
	}
	if !r.sharded() {
		s.renewal = &renewal{
			publisher: s.publisher, subscriber: r.buckets[0].subscriber, newClient: newClient,
			every: renewEvery, client: s.publisher.client,
		}
	}
	return s
}

// start starts the server's loops. It is called after the broker's Start, with
// r.mu held.
func (s *server) start(r *Redis) {
	r.loops.Go(func() {
		var renewing sync.WaitGroup
		if s.renewal != nil {
			renewing.Go(func() { s.renewal.loop(s.ctx) })
		}
		s.publisher.sendLoop(s.ctx)
		renewing.Wait() // bounded by redisTimeout: its context has ended
		s.publisher.closeClients()
	})
	if s.monitor != nil {
		r.loops.Go(func() { s.monitor.connectLoop(s.ctx, r.receive) })
	}
}

// retire ends a server that owns no bucket any more, and returns its queued
// broadcasts.
func (s *server) retire() []broadcast {
	s.publisher.queue.close()
	left := s.publisher.queue.dequeue(nil, math.MaxInt)
	s.cancel()
	return left
}
