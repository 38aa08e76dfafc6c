package broker

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// Redis is the broker over the pub/sub of one Redis server, of the master that
// sentinels choose, or of a cluster (sharded pub/sub). These differ only in how
// the router learns which server owns a bucket of rooms. Each server has a
// publisher, with a queue and pipelined round trips. Each bucket has a
// subscriber, with a connection that is pinged every second. Both reconnect by
// themselves.
type Redis struct {
	config    *redisConfig
	prefix    string
	queueSize int
	logger    *slog.Logger
	metrics   *metrics
	buckets   []*bucket // clusterBuckets of them in a cluster, otherwise one
	router    router
	unrouted  *queue             // broadcasts of rooms whose server is unknown
	ctx       context.Context    // ends when the loops must end
	cancel    context.CancelFunc // ends ctx
	loops     sync.WaitGroup     // loops start only with mu held and closed false
	healthMu  sync.Mutex         // keeps the gauge broker_up in step with Up

	// mu protects the fields below, and each bucket's owner.
	mu      sync.RWMutex
	servers map[string]*server // by host:port
	receive Receive            // nil before Start
	closed  bool
}

// OpenRedis returns a broker that begins to connect at Start. Redis need not be
// up. The error for an invalid URL names REDIS_URL and does not quote the
// password.
func OpenRedis(cfg Config) (*Redis, error) {
	target, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	return newRedis(cfg, target), nil
}

// newRedis returns a broker for the servers of target, whatever cfg.URL is.
func newRedis(cfg Config, target *redisConfig) *Redis {
	cfg = cfg.withDefaults()
	silenceRedisLogger()
	r := &Redis{
		config: target, prefix: cfg.Prefix, queueSize: cfg.Queue, logger: cfg.Logger,
		metrics: newMetrics(cfg.Registerer), unrouted: newQueue(cfg.Queue), servers: make(map[string]*server),
	}
	target.follow(cfg)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.buckets = make([]*bucket, 1)
	if r.sharded() {
		r.buckets = make([]*bucket, clusterBuckets)
	}
	for i := range r.buckets {
		r.buckets[i] = newBucket(r, i)
	}
	r.router.init(r)
	return r
}

// silenceRedisLogger silences go-redis' own, global logger: its messages are
// also returned as errors, which the broker logs once.
var silenceRedisLogger = sync.OnceFunc(func() { redis.SetLogger(discardLogger{}) })

type discardLogger struct{}

func (discardLogger) Printf(context.Context, string, ...any) {}

func (r *Redis) sharded() bool { return r.config.topology == topologyCluster }

func (r *Redis) bucket(room message.Room) *bucket {
	return r.buckets[bucketOf(room, len(r.buckets))]
}

func (r *Redis) channel(room message.Room) string {
	return r.bucket(room).subscriber.prefix + string(room)
}

// Start begins to connect, and to call receive. A second call does nothing.
func (r *Redis) Start(receive Receive) {
	r.mu.Lock()
	if r.receive != nil || r.closed {
		r.mu.Unlock()
		return
	}
	r.receive = receive
	for _, s := range r.servers {
		s.start(r)
	}
	r.router.start(r)
	r.mu.Unlock()
	for _, b := range r.buckets {
		b.ensureRunning()
	}
}

// startLoop runs loop on a goroutine of its own and returns true. loop must
// return soon after its context has ended. Before Start and after Close,
// startLoop returns false and does not run it.
func (r *Redis) startLoop(loop func(context.Context, Receive)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.receive == nil || r.closed {
		return false
	}
	r.loops.Go(func() { loop(r.ctx, r.receive) })
	return true
}

// Publish queues payload for all nodes that have subscribed to the room, this
// one included. It never blocks and reports no failure: a broadcast that
// cannot be sent is dropped and counted. The payload must not be written to
// afterwards.
func (r *Redis) Publish(room message.Room, payload []byte) {
	r.route(broadcast{room: room, payload: payload, at: time.Now()})
}

// Subscribe returns nil once Redis has confirmed this very subscription. While
// the room's server is known to be down it returns ErrDown at once. After
// ErrDown, or when the context ends first, the room stays wanted until
// Unsubscribe, and the broker subscribes to it as soon as it can.
func (r *Redis) Subscribe(ctx context.Context, room message.Room) error {
	return r.bucket(room).subscribe(ctx, room)
}

// Unsubscribe ends the room's subscription, if there is one. It never blocks.
func (r *Redis) Unsubscribe(room message.Room) { r.bucket(room).subscriber.rooms.remove(room) }

// Up reports whether Redis has answered a ping within the last 4 s. In a
// cluster, every server that owns a bucket must have.
func (r *Redis) Up() bool {
	if !r.sharded() {
		return r.buckets[0].subscriber.rooms.isUp()
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range r.buckets {
		if b.owner == nil || !b.owner.monitor.rooms.isUp() {
			return false
		}
	}
	return !r.closed
}

// updateHealth sets the gauge broker_up, and wakes the publisher when Redis is
// up. It is called when a connection has begun or ended, or when a bucket has
// moved.
func (r *Redis) updateHealth() {
	r.healthMu.Lock()
	defer r.healthMu.Unlock()
	up := 0.0
	if r.Up() {
		up = 1
		if owner := r.ownerServer(r.buckets[0]); owner != nil {
			owner.publisher.queue.notify()
		}
	}
	r.metrics.up.Set(up)
}

// Close sends the queued broadcasts to the servers that are up, while ctx
// lasts, and then ends all connections and loops. It may be called again.
func (r *Redis) Close(ctx context.Context) error {
	r.mu.Lock()
	again, started := r.closed, r.receive != nil
	r.closed = true
	servers := make([]*server, 0, len(r.servers))
	for _, s := range r.servers {
		servers = append(servers, s)
	}
	r.mu.Unlock()
	if again {
		return nil
	}
	r.unrouted.close()
	for _, s := range servers {
		s.publisher.queue.close()
	}
	for _, s := range servers {
		if started && s.publisher.up() {
			select {
			case <-s.publisher.sendLoopDone:
			case <-ctx.Done():
			}
		}
	}
	r.cancel()
	for _, b := range r.buckets {
		b.subscriber.rooms.close()
	}
	// Bounded: each loop ends with its context or within redisTimeout.
	r.loops.Wait()
	left := r.unrouted.len()
	for _, s := range servers {
		left += s.publisher.queue.len()
		_ = s.publisher.client.Close() // harmless if the loop has closed it
	}
	r.metrics.drop(dropClosed, left)
	r.metrics.up.Set(0)
	return nil
}

// roomOf returns the room of a channel: the inverse of prefix + room.
func roomOf(prefix, channel string) message.Room {
	return message.Room(strings.TrimPrefix(channel, prefix))
}
