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
	// pingInterval is the time between two pings, and two probes, of the receiving
	// connection.
	pingInterval = time.Second
	// silenceLimit is how long the connection may bring nothing, not even pongs.
	silenceLimit = 3 * time.Second
	// echoTimeout is how long the connection may bring none of the probes that
	// Redis accepted.
	echoTimeout = 5 * time.Second

	// The pause before a reconnect doubles with each failure from reconnectMin to
	// reconnectMax, less up to a half at random.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = time.Second
)

var (
	errNoEcho = errors.New("the connection answers pings but brings no events: another server has taken its place")
	errMoved  = errors.New("the address leads to another server now: another server has taken its place")
)

// channel returns the channel of a node, or of all nodes for "". The slash keeps
// it apart from the broker's channels, which end in the name of a room.
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
	pipe := (*r.client.Load()).Pipeline()
	for _, e := range batch {
		pipe.Publish(ctx, r.channel(e.to), e.payload)
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
		return fmt.Errorf("publish events: %w", err)
	}
	return nil
}

// listenLoop keeps one receiving connection. It reconnects when the connection
// breaks, falls silent, or brings no probes.
func (r *redisBackend) listenLoop(ctx context.Context, node string, receive func([]byte), connected func()) {
	lastLogged := "" // since the last connection
	for failures, connections := 0, 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := r.listen(ctx, node, receive, func() {
			if connections++; connections > 1 {
				r.metrics.reconnects.Inc()
			}
			lastLogged = ""
			connected()
		})
		if time.Since(began) > 2*reconnectMax {
			failures = 0
		}
		// health logs that Redis can't be reached; here only its refusals are new.
		var refused redis.Error
		if err != nil && err.Error() != lastLogged && (errors.As(err, &refused) || errors.Is(err, errNoEcho) || errors.Is(err, errMoved)) {
			r.health.log.Warn("no events from other nodes", "err", err)
			lastLogged = err.Error()
		}
		pause := min(reconnectMin<<min(failures, 10), reconnectMax)
		select {
		case <-time.After(pause - rand.N(pause/2)):
		case <-ctx.Done():
		}
	}
}

// listen receives on one connection until it ends, and returns the reason.
func (r *redisBackend) listen(ctx context.Context, node string, receive func([]byte), connected func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	client := r.newClient() // of its own, which no renewal closes
	pubsub := client.Subscribe(ctx)
	var loops sync.WaitGroup
	defer func() {
		r.listening.Store(nil)
		cancel(nil)
		_ = pubsub.Close()
		loops.Wait()
		_ = client.Close()
	}()
	// ReceiveTimeout does not end with ctx, only with the connection.
	stop := context.AfterFunc(ctx, func() { _ = pubsub.Close() })
	defer stop()
	channels := []string{r.channel(node), r.channel("")}
	if err := pubsub.Subscribe(ctx, channels...); err != nil {
		return err
	}
	var echo echoMonitor
	echo.mark()
	loops.Go(func() { cancel(r.pingLoop(ctx, pubsub, node, &echo)) })
	for confirmed := 0; ; {
		got, err := pubsub.ReceiveTimeout(ctx, silenceLimit)
		if cause := context.Cause(ctx); cause != nil {
			return cause // pingLoop's reason; err is only its consequence
		}
		if err != nil {
			return err
		}
		switch got := got.(type) {
		case *redis.Subscription:
			if confirmed++; confirmed == len(channels) {
				select { // a token for an earlier connection
				case <-r.relisten:
				default:
				}
				r.listening.Store(&node)
				connected()
			}
		case *redis.Message:
			if got.Payload == "" { // a probe
				echo.mark()
				continue
			}
			receive([]byte(got.Payload))
		}
	}
}

// pingLoop pings the connection, and publishes a probe, an empty envelope, that
// the connection must bring back. It returns the reason for its end.
func (r *redisBackend) pingLoop(ctx context.Context, pubsub *redis.PubSub, node string, echo *echoMonitor) error {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.relisten:
			return errMoved
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := pubsub.Ping(ctx); err != nil {
			return err
		}
		if r.send(ctx, []envelope{{to: node}}) != nil {
			echo.mark() // Redis did not accept the probe, so its absence proves nothing
			continue
		}
		if echo.sinceLast() > echoTimeout {
			return errNoEcho
		}
	}
}

// An echoMonitor knows when the connection last brought a probe. It is safe for
// concurrent use.
type echoMonitor struct {
	mu   sync.Mutex // Protects last.
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
