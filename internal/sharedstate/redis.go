package sharedstate

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

const (
	// poolSize bounds the connections for commands to one server: each batch
	// worker and each loop of the node uses one at a time.
	poolSize = 10
	// batchWorkers is the number of goroutines that run batchLoop.
	batchWorkers = 2
	// maxBatchCalls and maxBatchBytes bound one round trip.
	maxBatchCalls = 128
	maxBatchBytes = 1 << 20
	// maxQueuedCalls bounds the calls that wait for a batch worker.
	maxQueuedCalls = 4096
)

//go:embed lua/*.lua
var luaFiles embed.FS

// script returns the script in an embedded file.
func script(name string) *redis.Script {
	source, err := luaFiles.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err) // not possible: this package has the names and the files
	}
	return redis.NewScript(string(source))
}

// silenceRedisLog discards the log of go-redis, which is global. The same failures
// come back as errors, and health logs them once.
var silenceRedisLog = sync.OnceFunc(func() { redis.SetLogger(discardRedisLog{}) })

type discardRedisLog struct{}

func (discardRedisLog) Printf(context.Context, string, ...any) {}

// A redisBackend keeps the shared state in Redis. A change of several keys is a
// script, so that it is atomic. All keys of a script have the same hash tag, so
// that a cluster has them on one server.
type redisBackend struct {
	opts   redis.UniversalOptions
	slots  func(context.Context) ([]redis.ClusterSlot, error) // see Config.ClusterSlots
	client atomic.Pointer[redis.UniversalClient]              // which renewLoop replaces
	renew  chan struct{}                                      // holds a token when it should check now
	// listening is the name of the node while its receiving connection is subscribed.
	listening atomic.Pointer[string]
	relisten  chan struct{} // holds a token when that connection must be made anew
	prefix    string
	ttl       time.Duration
	timeout   time.Duration
	health    *health
	metrics   *metrics
	calls     chan *call // to the batch workers; never closed
	ctx       context.Context
	cancel    context.CancelFunc // ends the batch workers
	loops     sync.WaitGroup
}

// A call is one run of a script, with its result.
type call struct {
	script *redis.Script
	keys   []string
	args   []any

	value any
	err   error

	// Of a call of runBatched.
	ctx      context.Context // of the caller
	queuedAt time.Time
	done     chan struct{} // closed by the batch worker, after which value and err are set
}

// openRedis returns a backend. It does not wait for Redis.
func openRedis(cfg Config, m *metrics) *redisBackend {
	silenceRedisLog()
	opts := *cfg.Redis
	opts.PoolSize, opts.PoolTimeout = poolSize, cfg.timeout
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = cfg.timeout, cfg.timeout, cfg.timeout
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = -1 // the callers retry, because they know what is safe to repeat
	opts.MaxRedirects = 2
	r := &redisBackend{
		opts: opts, slots: cfg.ClusterSlots, renew: make(chan struct{}, 1), relisten: make(chan struct{}, 1), prefix: cfg.Prefix, ttl: cfg.TTL, timeout: cfg.timeout,
		health: newHealth(cfg.Logger, m), metrics: m, calls: make(chan *call, maxQueuedCalls),
	}
	client := r.newClient()
	r.client.Store(&client)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if !opts.IsClusterMode { // whose servers announce every change themselves
		r.loops.Go(r.renewLoop)
	}
	for range batchWorkers {
		r.loops.Go(r.batchLoop)
	}
	return r
}

// newClient returns a client that connects when it is first used.
func (r *redisBackend) newClient() redis.UniversalClient {
	opts := r.opts
	opts.Addrs = slices.Clone(opts.Addrs) // go-redis appends to it what it learns, for each client
	if !opts.IsClusterMode {
		return redis.NewUniversalClient(&opts)
	}
	cluster := opts.Cluster()
	cluster.ClusterSlots = r.slots
	return redis.NewClusterClient(cluster)
}

func (r *redisBackend) state() string { return r.health.state() }

func (r *redisBackend) close() error {
	r.cancel()
	r.loops.Wait()
	return (*r.client.Load()).Close()
}

// run makes calls in one round trip. Each call gets its own error; run returns
// the first. A second round trip sends the source of the scripts that the server
// does not have yet.
func (r *redisBackend) run(ctx context.Context, operation string, calls ...*call) error {
	if !r.health.mayTry(operation) {
		for _, c := range calls {
			c.err = errBackingOff
		}
		return errBackingOff
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	unknown := r.roundTrip(ctx, calls, func(p redis.Pipeliner, c *call) *redis.Cmd {
		return p.EvalSha(ctx, c.script.Hash(), c.keys, c.args...)
	})
	if len(unknown) > 0 {
		r.roundTrip(ctx, unknown, func(p redis.Pipeliner, c *call) *redis.Cmd {
			return c.script.Eval(ctx, p, c.keys, c.args...)
		})
	}
	errs := make([]error, len(calls))
	for i, c := range calls {
		errs[i] = c.err
	}
	err := r.health.record(ctx, operation, time.Since(began), errs)
	for i, c := range calls {
		c.err = errs[i]
	}
	return err
}

// roundTrip makes one round trip. It returns the calls whose script the server
// does not have.
func (r *redisBackend) roundTrip(
	ctx context.Context, calls []*call, add func(redis.Pipeliner, *call) *redis.Cmd,
) (unknown []*call) {
	pipe := (*r.client.Load()).Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = add(pipe, c)
	}
	_, _ = pipe.Exec(ctx) // the commands have their errors
	for i, cmd := range cmds {
		calls[i].value, calls[i].err = cmd.Result()
		if errors.Is(calls[i].err, redis.Nil) {
			calls[i].err = nil
		}
		if redis.HasErrorPrefix(calls[i].err, "NOSCRIPT") {
			unknown = append(unknown, calls[i])
		}
		if redis.HasErrorPrefix(calls[i].err, "READONLY") {
			r.renewNow()
		}
	}
	return unknown
}

// runBatched makes one call in a round trip that it shares with concurrent ones:
// thousands of clients may connect at once. It waits at most r.timeout to be sent
// and as long again for the result. A call that was sent takes effect, even if
// its caller no longer waits.
func (r *redisBackend) runBatched(ctx context.Context, c *call) error {
	ctx, cancel := context.WithTimeout(ctx, 2*r.timeout)
	defer cancel()
	if r.health.isBackingOff() {
		return errBackingOff
	}
	c.ctx, c.queuedAt, c.done = ctx, time.Now(), make(chan struct{})
	select {
	case r.calls <- c:
	default:
		return fmt.Errorf("%w: %d calls are queued", message.ErrSharedStateUnavailable, maxQueuedCalls)
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", message.ErrSharedStateUnavailable, ctx.Err())
	case <-r.ctx.Done():
		return fmt.Errorf("%w: closed", message.ErrSharedStateUnavailable)
	}
}

// isLate reports whether a call has waited so long that its caller may be gone
// before the result. It then fails the call.
func (r *redisBackend) isLate(c *call) bool {
	if c.ctx.Err() == nil && time.Since(c.queuedAt) < r.timeout {
		return false
	}
	c.err = fmt.Errorf("%w: the call was not sent within %v", message.ErrSharedStateUnavailable, r.timeout)
	close(c.done)
	return true
}

// batchLoop makes the queued calls, many in one round trip, except those that
// are late.
func (r *redisBackend) batchLoop() {
	for {
		var batch []*call
		select {
		case c := <-r.calls:
			batch = append(batch, c)
		case <-r.ctx.Done():
			return
		}
	gather:
		for len(batch) < maxBatchCalls {
			select {
			case c := <-r.calls:
				batch = append(batch, c)
			default:
				break gather
			}
		}
		batch = slices.DeleteFunc(batch, r.isLate)
		if len(batch) > 0 {
			_ = r.run(r.ctx, opQuery, batch...) // the calls have their errors
		}
		for _, c := range batch {
			close(c.done)
		}
	}
}
