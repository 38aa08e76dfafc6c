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
// sentinels choose, or of a cluster (sharded pub/sub). What differs is only
// who says where a bucket of rooms lives (router.go). Publications go out by a
// publisher a server (one queue, pipelined round trips) and come in by a
// subscriber a bucket (one connection, watched every second); each mends itself.
type Redis struct {
	config    *redisConfig
	prefix    string
	queueSize int
	logger    *slog.Logger
	metrics   *metrics
	buckets   []*bucket // one, but in a cluster
	router    router
	unrouted  *queue             // publications whose server is not known yet
	ctx       context.Context    // the life of all loops
	cancel    context.CancelFunc // ends it
	loops     sync.WaitGroup     // joined only with mu held and closed false
	healthMu  sync.Mutex         // makes Up and its gauge change together

	mu      sync.RWMutex // Protects following, and each bucket's owner.
	servers map[string]*server
	receive Receive // nil before Start
	closed  bool
}

// OpenRedis returns a broker that begins to connect at Start. Redis need not
// be up. A URL that cannot be right is an error which names REDIS_URL and does
// not repeat the password.
func OpenRedis(cfg Config) (*Redis, error) {
	cfg = cfg.withDefaults()
	target, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	silenceRedisLogger()
	r := &Redis{
		config: target, prefix: cfg.Prefix, queueSize: cfg.Queue, logger: cfg.Logger,
		metrics: newMetrics(cfg.Registerer), unrouted: newQueue(cfg.Queue), servers: make(map[string]*server),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.buckets = make([]*bucket, 1)
	if r.sharded() {
		r.buckets = make([]*bucket, clusterBuckets)
	}
	for i := range r.buckets {
		r.buckets[i] = newBucket(r, i)
	}
	r.router.init(r)
	return r, nil
}

// silenceRedisLogger silences go-redis' own logger, a global one: what it has to say comes
// back to us as errors, and we say it once.
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

// Start begins to connect, and to call receive. It is called once.
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

// startLoop runs loop until it returns, which it does soon after the context
// ends. Before Start and after Close it does not, and returns false.
func (r *Redis) startLoop(loop func(context.Context, Receive)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.receive == nil || r.closed {
		return false
	}
	r.loops.Go(func() { loop(r.ctx, r.receive) })
	return true
}

// Publish queues payload for all nodes subscribed to the room, this one too.
// It never blocks and reports no failure: what cannot be sent is dropped and
// counted. The payload must not be written to afterwards.
func (r *Redis) Publish(room message.Room, payload []byte) {
	r.route(publication{room: room, payload: payload, at: time.Now()})
}

// Subscribe returns once Redis has confirmed this very subscription. While the
// room's server is known to be down it returns ErrDown at once. When it fails,
// by ErrDown or by the context, the room stays wanted until Unsubscribe and is
// subscribed to as soon as that is possible.
func (r *Redis) Subscribe(ctx context.Context, room message.Room) error {
	return r.bucket(room).subscribe(ctx, room)
}

// Unsubscribe ends the room's subscription, if there is one. It never blocks.
func (r *Redis) Unsubscribe(room message.Room) { r.bucket(room).subscriber.rooms.remove(room) }

// Up says whether Redis answered last time it was asked, at most 4 s ago; of a
// cluster, every server that has a bucket.
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

// updateHealth is called when a link, or who has which bucket, has changed.
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

// Close sends what is queued, to servers that are up and while ctx lasts, then
// ends all connections and loops. Calling it again is harmless.
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
			case <-s.publisher.drained:
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
		_ = s.publisher.client.Close() // a second time where the loop did it
	}
	r.metrics.drop(dropClosed, left)
	r.metrics.up.Set(0)
	return nil
}

// roomOf is the inverse of prefix + room.
func roomOf(prefix, channel string) message.Room {
	return message.Room(strings.TrimPrefix(channel, prefix))
}
