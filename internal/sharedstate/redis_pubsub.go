package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	pingEvery = time.Second
	// silenceLimit is how long a connection may say nothing, though pinged.
	silenceLimit = 3 * time.Second
	// echoTimeout is how long a connection may bring nothing of what this node
	// tells itself each second, though Redis took it.
	echoTimeout = 5 * time.Second

	reconnectMin = 50 * time.Millisecond // doubled at each failure,
	reconnectMax = time.Second           // less up to a half at random
)

var errNoEcho = errors.New("it answers, but brings nothing: another server has taken its place")

// channel is where a node listens, "" for where all do. The slash keeps it
// apart from the broker's, which end in the name of a room.
func (r *redisBackend) channel(node string) string {
	if node == "" {
		return r.prefix + "/nodes"
	}
	return r.prefix + "/node/" + node
}

func (r *redisBackend) send(ctx context.Context, batch []envelope) error {
	if !r.health.mayTry(opEvent) {
		return errBackingOff
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	pipe := r.client.Pipeline()
	for _, l := range batch {
		pipe.Publish(ctx, r.channel(l.to), l.payload)
	}
	cmds, err := pipe.Exec(ctx)
	errs := make([]error, 0, len(batch))
	for _, cmd := range cmds {
		errs = append(errs, cmd.Err())
	}
	if len(errs) == 0 {
		errs = append(errs, err)
	}
	if err := r.health.record(ctx, opEvent, time.Since(began), errs); err != nil {
		return fmt.Errorf("tell other nodes: %w", err)
	}
	return nil
}

// listenLoop keeps one connection that receives, made anew when it breaks,
// falls silent or has gone deaf.
func (r *redisBackend) listenLoop(ctx context.Context, node string, receive func([]byte), connected func()) {
	lastLogged := ""
	for failures, connections := 0, 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := r.listen(ctx, node, receive, func() {
			if connections++; connections > 1 {
				r.metrics.reconnects.Inc()
			}
			connected()
		})
		if time.Since(began) > 2*reconnectMax {
			failures = 0
		}
		// That nobody answers is found and told by those who ask.
		var refused redis.Error
		if err != nil && err.Error() != lastLogged && (errors.As(err, &refused) || errors.Is(err, errNoEcho)) {
			r.health.log.Warn("no notices from other nodes", "err", err)
			lastLogged = err.Error()
		}
		pause := min(reconnectMin<<min(failures, 10), reconnectMax)
		select {
		case <-time.After(pause - rand.N(pause/2)):
		case <-ctx.Done():
		}
	}
}

// listen lives as long as one connection, and returns why it ended.
func (r *redisBackend) listen(ctx context.Context, node string, receive func([]byte), connected func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	pubsub := r.client.Subscribe(ctx)
	var loops sync.WaitGroup
	defer func() {
		cancel(nil)
		_ = pubsub.Close()
		loops.Wait()
	}()
	// Receiving does not end with its context, but with its connection.
	stop := context.AfterFunc(ctx, func() { _ = pubsub.Close() })
	defer stop()
	channels := []string{r.channel(node), r.channel("")}
	if err := pubsub.Subscribe(ctx, channels...); err != nil {
		return err
	}
	var e echoMonitor
	e.mark()
	loops.Go(func() { cancel(r.pingLoop(ctx, pubsub, node, &e)) })
	for confirmed := 0; ; {
		got, err := pubsub.ReceiveTimeout(ctx, silenceLimit)
		if cause := context.Cause(ctx); cause != nil {
			return cause // the other loop's reason: here only the end was seen
		}
		if err != nil {
			return err
		}
		switch got := got.(type) {
		case *redis.Subscription:
			if confirmed++; confirmed == len(channels) {
				connected()
			}
		case *redis.Message:
			if got.Payload == "" {
				e.mark()
				continue
			}
			receive([]byte(got.Payload))
		}
	}
}

// pingLoop pings the connection, and has Redis send the node an empty letter:
// what is published must come out here. It returns why it ended.
func (r *redisBackend) pingLoop(ctx context.Context, pubsub *redis.PubSub, node string, e *echoMonitor) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := pubsub.Ping(ctx); err != nil {
			return err
		}
		if r.send(ctx, []envelope{{to: node}}) != nil {
			e.mark() // nothing was to be heard
			continue
		}
		if e.sinceLast() > echoTimeout {
			return errNoEcho
		}
	}
}

// An echoMonitor is what a node hears of itself.
type echoMonitor struct {
	mu   sync.Mutex
	last time.Time
}

func (e *echoMonitor) mark() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = time.Now()
}

func (e *echoMonitor) sinceLast() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Since(e.last)
}
