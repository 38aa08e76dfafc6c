package session

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
	// funnels is how many round trips of handshakes and readers are under way.
	funnels = 2
	// tripCalls and tripBytes bound one round trip.
	tripCalls = 128
	tripBytes = 1 << 20
	// waiting bounds the calls that wait for a funnel.
	waiting = 4096
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

// quiet silences go-redis' own logger, a global one: what it has to say comes
// back to us as errors, and we say it once.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// redisSpace is the place where nodes meet in Redis. All that changes more
// than one thing is a script, so that it happens whole or not at all; all keys
// of one script have one hash tag, so that a cluster has them in one place.
type redisSpace struct {
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
	ctx   context.Context // who waits for it
	asked time.Time
	done  chan struct{} // closed by the funnel
}

func openRedis(cfg Config, m *metrics) *redisSpace {
	quiet()
	opts := *cfg.Redis
	opts.PoolSize, opts.PoolTimeout = poolSize, cfg.timeout
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = cfg.timeout, cfg.timeout, cfg.timeout
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = -1 // a call is tried again where its outcome is known, not here
	opts.MaxRedirects = 2
	r := &redisSpace{
		client: redis.NewUniversalClient(&opts), prefix: cfg.Prefix, ttl: cfg.TTL, timeout: cfg.timeout,
		health: newHealth(cfg.Logger, m), metrics: m, calls: make(chan *call, waiting),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for range funnels {
		r.loops.Go(r.funnelLoop)
	}
	return r
}

func (r *redisSpace) up() bool { return r.health.isUp() }

func (r *redisSpace) close() error {
	r.cancel()
	r.loops.Wait()
	return r.client.Close()
}

// run makes calls in one round trip. Each gets its own error; the one returned
// is the first. A script that a server does not know yet is sent whole, in a
// second round trip.
func (r *redisSpace) run(ctx context.Context, operation string, calls ...*call) error {
	if !r.health.mayTry(operation) {
		for _, c := range calls {
			c.err = errResting
		}
		return errResting
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	unknown := r.trip(ctx, calls, func(p redis.Pipeliner, c *call) *redis.Cmd {
		return p.EvalSha(ctx, c.script.Hash(), c.keys, c.args...)
	})
	if len(unknown) > 0 {
		r.trip(ctx, unknown, func(p redis.Pipeliner, c *call) *redis.Cmd {
			return c.script.Eval(ctx, p, c.keys, c.args...)
		})
	}
	errs := make([]error, len(calls))
	for i, c := range calls {
		errs[i] = c.err
	}
	err := r.health.note(ctx, operation, time.Since(began), errs)
	for i, c := range calls {
		c.err = errs[i]
	}
	return err
}

// trip is one round trip; it returns the calls whose script is not known.
func (r *redisSpace) trip(
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

// ask makes one call, in a round trip shared with others that ask at the same
// time: thousands of clients may come at once. It waits for its turn as long
// as for its answer: one that was sent is done, whoever has stopped waiting.
func (r *redisSpace) ask(ctx context.Context, c *call) error {
	ctx, cancel := context.WithTimeout(ctx, 2*r.timeout)
	defer cancel()
	if r.health.rests() {
		return errResting
	}
	c.ctx, c.asked, c.done = ctx, time.Now(), make(chan struct{})
	select {
	case r.calls <- c:
	default:
		return fmt.Errorf("%w: %d calls wait already", message.ErrAway, waiting)
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", message.ErrAway, ctx.Err())
	case <-r.ctx.Done():
		return fmt.Errorf("%w: closed", message.ErrAway)
	}
}

// isLate says whether a call's turn has come so late that whoever waits for it
// may be gone before the answer; then it is answered at once.
func (r *redisSpace) isLate(c *call) bool {
	if c.ctx.Err() == nil && time.Since(c.asked) < r.timeout {
		return false
	}
	c.err = fmt.Errorf("%w: its turn did not come within %v", message.ErrAway, r.timeout)
	close(c.done)
	return true
}

// funnelLoop makes what was asked: all that waits goes in one round trip, but
// for what nobody waits for any more.
func (r *redisSpace) funnelLoop() {
	for {
		var batch []*call
		select {
		case c := <-r.calls:
			batch = append(batch, c)
		case <-r.ctx.Done():
			return
		}
	gather:
		for len(batch) < tripCalls {
			select {
			case c := <-r.calls:
				batch = append(batch, c)
			default:
				break gather
			}
		}
		batch = slices.DeleteFunc(batch, r.isLate)
		if len(batch) > 0 {
			_ = r.run(r.ctx, opAsk, batch...) // each call has its own error
		}
		for _, c := range batch {
			close(c.done)
		}
	}
}
