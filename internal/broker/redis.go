package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// redisTimeout bounds each dial, read and write. Redis answers in less than a
// millisecond or is in trouble, and the log delivers meanwhile.
const redisTimeout = 500 * time.Millisecond

// Redis is the broker over one Redis server's pub/sub. Publications go out by
// a publisher (one queue, pipelined round trips) and come in by a subscriber
// (one connection, watched every second); each mends itself.
type Redis struct {
	client     *redis.Client
	metrics    *metrics
	publisher  *publisher
	subscriber *subscriber
	cancel     context.CancelFunc // ends all loops
	loops      sync.WaitGroup

	ctx context.Context // the loops' life

	mu      sync.Mutex // Protects following.
	started bool
	closed  bool
}

// OpenRedis returns a broker that begins to connect at Start. Redis need not
// be up. A URL that cannot be right is an error which names REDIS_URL and does
// not repeat the password.
func OpenRedis(cfg Config) (*Redis, error) {
	cfg = cfg.withDefaults()
	opts, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	quiet()
	m := newMetrics(cfg.Registerer)
	ctx, cancel := context.WithCancel(context.Background())
	r := &Redis{client: redis.NewClient(opts), metrics: m, ctx: ctx, cancel: cancel}
	rooms, queue := newSubscriptions(), newQueue(cfg.Queue)
	r.subscriber = &subscriber{
		opts: opts, prefix: cfg.Prefix, logger: cfg.Logger, metrics: m, rooms: rooms,
		onUp: queue.kick,
	}
	r.publisher = &publisher{
		client: r.client, prefix: cfg.Prefix, logger: cfg.Logger, metrics: m, queue: queue,
		up: rooms.isUp, idle: make(chan struct{}),
	}
	return r, nil
}

// parseURL reads redis:// and rediss:// URLs and sets our bounds.
func parseURL(raw string) (*redis.Options, error) {
	const want = "want redis://[user:password@]host:6379[/0], or rediss:// for TLS"
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "redis" && u.Scheme != "rediss") {
		return nil, fmt.Errorf("REDIS_URL: %s", want)
	}
	opts, err := redis.ParseURL(raw)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w: %s", err, want)
	}
	opts.Protocol = 2 // RESP3 brings nothing here but pushes to be filtered
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = redisTimeout, redisTimeout, redisTimeout
	opts.DialerRetries = 1
	opts.MaxRetries = -1 // a publish sent twice would show a signal twice
	opts.PoolSize = 2
	opts.PipelinePoolSize = -1 // pipelines are all that the pool is for
	opts.DisableIdentity = true
	return opts, nil
}

// quiet silences go-redis' own logger, a global one: what it has to say comes
// back to us as errors, and we say it once.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Start begins to connect, and to call receive. It is called once.
func (r *Redis) Start(receive Receive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started || r.closed {
		return
	}
	r.started = true
	r.loops.Go(func() { r.subscriber.connectLoop(r.ctx, receive) })
	r.loops.Go(func() { r.publisher.drainLoop(r.ctx) })
}

// Publish queues payload for all nodes subscribed to the room, this one too.
// It never blocks and reports no failure: what cannot be sent is dropped and
// counted. The payload must not be written to afterwards.
func (r *Redis) Publish(room message.Room, payload []byte) {
	r.publisher.publish(room, payload)
}

// Subscribe returns once Redis has confirmed this very subscription. While the
// broker is known to be down it returns ErrDown at once. When it fails, by
// ErrDown or by the context, the room stays wanted until Unsubscribe and is
// subscribed to as soon as that is possible.
func (r *Redis) Subscribe(ctx context.Context, room message.Room) error {
	return r.subscriber.subscribe(ctx, room)
}

// Unsubscribe ends the room's subscription, if there is one. It never blocks.
func (r *Redis) Unsubscribe(room message.Room) { r.subscriber.rooms.unwant(room) }

// Up says whether Redis answered last time it was asked, at most 4 s ago.
func (r *Redis) Up() bool { return r.subscriber.rooms.isUp() }

// Close sends what is queued, if Redis is up and ctx lasts, then ends all
// connections and loops. Calling it again is harmless.
func (r *Redis) Close(ctx context.Context) error {
	r.mu.Lock()
	again, started := r.closed, r.started
	r.closed = true
	r.mu.Unlock()
	if again {
		return nil
	}
	r.publisher.queue.close()
	if started && r.Up() {
		select {
		case <-r.publisher.idle:
		case <-ctx.Done():
		}
	}
	r.cancel()
	r.subscriber.rooms.close()
	// Bounded: each loop ends with its context or within redisTimeout.
	r.loops.Wait()
	r.metrics.drop(dropClosed, r.publisher.queue.len())
	if err := r.client.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the Redis client: %w", err)
	}
	return nil
}

// roomOf is the inverse of prefix + room.
func roomOf(prefix, channel string) message.Room {
	return message.Room(strings.TrimPrefix(channel, prefix))
}
