package sharedstate

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

const (
	// poolSize bounds the connections for commands to one server: the funnels
	// and each loop have one at a time.
	poolSize = 10
	// batchWorkers is how many round trips of handshakes and readers are under way.
	batchWorkers = 2
	// maxBatchCalls and maxBatchBytes bound one round trip.
	maxBatchCalls = 128
	maxBatchBytes = 1 << 20
	// maxQueuedCalls bounds the calls that wait for a funnel.
	maxQueuedCalls = 4096
)

//go:embed lua/*.lua
var luaFiles embed.FS

// script returns the script of a file; the files are part of the binary.
func script(name string) *redis.Script {
	source, err := luaFiles.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err) // a name in this package
	}
	return redis.NewScript(string(source))
}

// silenceRedisLog silences go-redis' own logger, a global one: what it has to say comes
// back to us as errors, and we say it once.
var silenceRedisLog = sync.OnceFunc(func() { redis.SetLogger(discardRedisLog{}) })

type discardRedisLog struct{}

func (discardRedisLog) Printf(context.Context, string, ...any) {}

// redisBackend is the place where nodes meet in Redis. All that changes more
// than one thing is a script, so that it happens whole or not at all; all keys
// of one script have one hash tag, so that a cluster has them in one place.
type redisBackend struct {
	client  redis.UniversalClient
	prefix  string
	ttl     time.Duration
	timeout time.Duration
	health  *health
	metrics *metrics
	calls   chan *call // to the funnels; never closed
	ctx     context.Context
	cancel  context.CancelFunc // ends the funnels
	loops   sync.WaitGroup
}

// A call is a script to run, and then its answer.
type call struct {
	script *redis.Script
	keys   []string
	args   []any

	value any
	err   error

	// Of a call that goes through a funnel.
	ctx      context.Context // who waits for it
	queuedAt time.Time
	done     chan struct{} // closed by the funnel
}

func openRedis(cfg Config, m *metrics) *redisBackend {
	silenceRedisLog()
	opts := *cfg.Redis
	opts.PoolSize, opts.PoolTimeout = poolSize, cfg.timeout
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = cfg.timeout, cfg.timeout, cfg.timeout
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = -1 // a call is tried again where its outcome is known, not here
	opts.MaxRedirects = 2
	r := &redisBackend{
		client: redis.NewUniversalClient(&opts), prefix: cfg.Prefix, ttl: cfg.TTL, timeout: cfg.timeout,
		health: newHealth(cfg.Logger, m), metrics: m, calls: make(chan *call, maxQueuedCalls),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for range batchWorkers {
		r.loops.Go(r.batchLoop)
	}
	return r
}

func (r *redisBackend) up() bool { return r.health.isUp() }

func (r *redisBackend) close() error {
	r.cancel()
	r.loops.Wait()
	return r.client.Close()
}

// run makes calls in one round trip. Each gets its own error; the one returned
// is the first. A script that a server does not know yet is sent whole, in a
// second round trip.
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

// roundTrip is one round trip; it returns the calls whose script is not known.
func (r *redisBackend) roundTrip(
	ctx context.Context, calls []*call, add func(redis.Pipeliner, *call) *redis.Cmd,
) (unknown []*call) {
	pipe := r.client.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = add(pipe, c)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, cmd := range cmds {
		calls[i].value, calls[i].err = cmd.Result()
		if errors.Is(calls[i].err, redis.Nil) {
			calls[i].err = nil
		}
		if redis.HasErrorPrefix(calls[i].err, "NOSCRIPT") {
			unknown = append(unknown, calls[i])
		}
	}
	return unknown
}

// runBatched makes one call, in a round trip shared with others that ask at the same
// time: thousands of clients may come at once. It waits for its turn as long
// as for its answer: one that was sent is done, whoever has stopped waiting.
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
		return fmt.Errorf("%w: %d calls wait already", message.ErrSharedStateUnavailable, maxQueuedCalls)
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

// isLate says whether a call's turn has come so late that whoever waits for it
// may be gone before the answer; then it is answered at once.
func (r *redisBackend) isLate(c *call) bool {
	if c.ctx.Err() == nil && time.Since(c.queuedAt) < r.timeout {
		return false
	}
	c.err = fmt.Errorf("%w: its turn did not come within %v", message.ErrSharedStateUnavailable, r.timeout)
	close(c.done)
	return true
}

// batchLoop makes what was asked: all that waits goes in one round trip, but
// for what nobody waits for any more.
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
			_ = r.run(r.ctx, opQuery, batch...) // each call has its own error
		}
		for _, c := range batch {
			close(c.done)
		}
	}
}
