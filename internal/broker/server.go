package broker

import (
	"context"
	"math"

	"github.com/redis/go-redis/v9"
)

// A server is one Redis server that has buckets: what is to be published there
// waits in a queue of its own, so that a server in trouble keeps up nobody but
// its own rooms.
type server struct {
	addr      string
	publisher *publisher
	// watch is a connection without rooms, which tells how the server is. Nil
	// when the one bucket's link tells it.
	monitor *subscriber
	ctx     context.Context // the life of the loops
	cancel  context.CancelFunc
}

// newServer is called with r.mu held.
func (r *Redis) newServer(addr string) *server {
	s := &server{addr: addr}
	s.ctx, s.cancel = context.WithCancel(r.ctx)
	queue := newQueue(r.queueSize)
	up := r.buckets[0].subscriber.rooms.isUp
	if r.sharded() {
		s.monitor = &subscriber{
			opts: r.config.server, logger: r.logger, metrics: r.metrics, rooms: newSubscriptions(),
			locate:   fixedAddr(addr),
			onChange: func() { r.updateHealth(); queue.notify(); r.recheckSubscribers(s) },
		}
		up = s.monitor.rooms.isUp
	}
	s.publisher = &publisher{
		client: redis.NewClient(withAddr(r.config.server, addr)), sharded: r.sharded(), channel: r.channel,
		logger: r.logger, metrics: r.metrics, queue: queue, up: up, drained: make(chan struct{}), reroute: r.reroute,
	}
	return s
}

// start is called with r.mu held, once the broker has been started.
func (s *server) start(r *Redis) {
	r.loops.Go(func() {
		s.publisher.drainLoop(s.ctx)
		_ = s.publisher.client.Close()
	})
	if s.monitor != nil {
		r.loops.Go(func() { s.monitor.connectLoop(s.ctx, r.receive) })
	}
}

// retire ends a server that has no bucket any more, and returns what waited.
func (s *server) retire() []publication {
	s.publisher.queue.close()
	left := s.publisher.queue.dequeue(nil, math.MaxInt)
	s.cancel()
	return left
}
