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
	watch  *subscriber
	ctx    context.Context // the life of the loops
	cancel context.CancelFunc
}

// newServer is called with r.mu held.
func (r *Redis) newServer(addr string) *server {
	s := &server{addr: addr}
	s.ctx, s.cancel = context.WithCancel(r.ctx)
	queue := newQueue(r.queueSize)
	up := r.buckets[0].link.rooms.isUp
	if r.sharded() {
		s.watch = &subscriber{
			opts: r.place.server, logger: r.logger, metrics: r.metrics, rooms: newSubscriptions(),
			locate:   fixed(addr),
			onChange: func() { r.health(); queue.kick(); r.nudgeLinks(s) },
		}
		up = s.watch.rooms.isUp
	}
	s.publisher = &publisher{
		client: redis.NewClient(at(r.place.server, addr)), sharded: r.sharded(), channel: r.channel,
		logger: r.logger, metrics: r.metrics, queue: queue, up: up, idle: make(chan struct{}), moved: r.republish,
	}
	return s
}

// start is called with r.mu held, once the broker has been started.
func (s *server) start(r *Redis) {
	r.loops.Go(func() {
		s.publisher.drainLoop(s.ctx)
		_ = s.publisher.client.Close()
	})
	if s.watch != nil {
		r.loops.Go(func() { s.watch.connectLoop(s.ctx, r.receive) })
	}
}

// retire ends a server that has no bucket any more, and returns what waited.
func (s *server) retire() []publication {
	s.publisher.queue.close()
	left := s.publisher.queue.take(nil, math.MaxInt)
	s.cancel()
	return left
}
