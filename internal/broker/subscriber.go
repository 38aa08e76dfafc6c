package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	pingEvery = time.Second
	// silenceLimit is how long a connection may say nothing, though pinged.
	silenceLimit = 3 * time.Second
	// maxRoomsPerCommand bounds the rooms of one SUBSCRIBE command.
	maxRoomsPerCommand = 256

	reconnectMin = 50 * time.Millisecond // doubled at each failure,
	reconnectMax = time.Second           // less up to a half at random
)

var (
	errAlreadyDialed        = errors.New("this connection is over")
	errOwnerChanged         = errors.New("another server has the rooms now")
	errUnsubscribedByServer = errors.New("the server gave the rooms away") // it sent sunsubscribe by itself
	errIdle                 = errors.New("no room is left")
)

// A subscriber keeps one connection that receives. go-redis would mend a
// PubSub in silence; here each lives for one socket only, so that every
// connection is a generation of its own: it starts with nothing subscribed,
// and no answer of an earlier one counts.
type subscriber struct {
	opts                redis.Options // but for Addr
	prefix              string
	sharded             bool
	quiet               bool // log nothing but what Redis itself refuses
	logger              *slog.Logger
	metrics             *metrics
	rooms               *subscriptions
	ownerMayHaveChanged chan struct{} // holds a token when isOwner may have changed; nil: never

	// locate says where to connect, after an attempt that went as told.
	locate func(ctx context.Context, last attempt) (string, error)
	// isOwner says whether addr still has the rooms; nil: always.
	isOwner func(addr string) bool
	// idle is asked at each ping and failed attempt; true ends connectLoop. Nil: never.
	checkIdle func() bool
	// onChange is called when a connection has begun or ended; must not block.
	onChange func()
}

// recheck has the subscriber compare where it is and where it should be.
func (s *subscriber) recheck() {
	select {
	case s.ownerMayHaveChanged <- struct{}{}:
	default:
	}
}

// connectLoop runs one connection after the other until ctx ends, or idle says
// that none is needed.
func (s *subscriber) connectLoop(ctx context.Context, receive Receive) {
	connected, failures, lastLogged := 0, 0, ""
	var last attempt
	for ctx.Err() == nil {
		var began time.Time
		last = s.runConnection(ctx, last, receive, func(addr string) {
			if connected++; connected > 1 {
				s.metrics.reconnects.Inc()
			}
			began = time.Now()
			if !s.quiet {
				s.logger.Info("connected to Redis", "addr", addr, "db", s.opts.DB)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(last.err, errIdle) || (s.checkIdle != nil && began.IsZero() && s.checkIdle()) {
			s.rooms.disconnectedIdle()
			return
		}
		if !began.IsZero() && time.Since(began) > reconnectMax {
			failures, lastLogged = 0, ""
		}
		lastLogged = s.logFailure(last, lastLogged)
		select {
		case <-time.After(backoff(failures)):
		case <-s.ownerMayHaveChanged:
		case <-ctx.Done():
		}
		failures++
	}
}

// logFailure logs why there is no connection, once an outage, not once an attempt.
func (s *subscriber) logFailure(last attempt, lastLogged string) string {
	_, redirected := redis.IsMovedError(last.err)
	if redirected || errors.Is(last.err, errOwnerChanged) || errors.Is(last.err, errUnsubscribedByServer) || last.err.Error() == lastLogged {
		return lastLogged
	}
	var refused redis.Error
	if !s.quiet || errors.As(last.err, &refused) {
		s.logger.Warn("Redis cannot be reached, messages go by the log", "addr", last.addr, "err", last.err)
	}
	return last.err.Error()
}

func backoff(failures int) time.Duration {
	d := min(reconnectMin<<min(failures, 10), reconnectMax)
	return d - rand.N(d/2)
}

// runConnection connects, calls up once Redis has answered a ping, and returns
// how the connection ended.
func (s *subscriber) runConnection(
	ctx context.Context, last attempt, receive Receive, onUp func(addr string),
) (result attempt) {
	addr, err := s.locate(ctx, last)
	if err != nil {
		s.rooms.disconnected()
		return attempt{err: err}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	client := redis.NewClient(dialOnceOptions(s.opts, addr))
	pubsub := client.Subscribe(ctx)
	var loops sync.WaitGroup
	defer func() {
		cancel(nil)
		_ = pubsub.Close()
		loops.Wait()
		_ = client.Close()
		if errors.Is(result.err, errIdle) {
			s.rooms.disconnectedIdle() // who comes just now waits for the next connection
		} else {
			s.rooms.disconnected()
		}
		s.onChange()
	}()
	// Receiving does not end with its context, but with its connection.
	stop := context.AfterFunc(ctx, func() { _ = pubsub.Close() })
	defer stop()

	if err := pubsub.Ping(ctx); err != nil {
		return attempt{addr, fmt.Errorf("connect: %w", err)}
	}
	if _, err := pubsub.ReceiveTimeout(ctx, redisTimeout); err != nil {
		return attempt{addr, fmt.Errorf("first ping: %w", err)}
	}
	s.rooms.connected()
	onUp(addr)
	s.onChange()
	loops.Go(func() { cancel(s.writeLoop(ctx, addr, pubsub)) })
	err = s.readLoop(ctx, pubsub, receive)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the writer's reason: the reader only saw its socket close
	}
	return attempt{addr, err}
}

// dialOnceOptions returns options with which a client dials once and never again.
func dialOnceOptions(opts redis.Options, addr string) *redis.Options {
	one := withAddr(opts, addr)
	dial := redis.NewDialer(one)
	var dialed atomic.Bool
	one.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, errAlreadyDialed
		}
		return dial(ctx, network, addr)
	}
	return one
}

// writeLoop pings each second and writes what subscriptions want written,
// until ctx ends, writing fails, or the connection is not what is wanted.
func (s *subscriber) writeLoop(ctx context.Context, addr string, pubsub *redis.PubSub) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ownerMayHaveChanged:
			if s.isOwner != nil && !s.isOwner(addr) {
				err = errOwnerChanged
			}
		case <-ping.C:
			if s.checkIdle != nil && s.checkIdle() {
				return errIdle
			}
			err = pubsub.Ping(ctx)
		case <-s.rooms.wake:
			err = s.writeSubscriptions(ctx, pubsub)
		}
		if err != nil {
			return err
		}
	}
}

func (s *subscriber) writeSubscriptions(ctx context.Context, pubsub *redis.PubSub) error {
	subscribe, unsubscribe := pubsub.Subscribe, pubsub.Unsubscribe
	if s.sharded {
		subscribe, unsubscribe = pubsub.SSubscribe, pubsub.SUnsubscribe
	}
	for {
		isSubscribe, rooms := s.rooms.nextCommand(maxRoomsPerCommand)
		if len(rooms) == 0 {
			return nil
		}
		channels := make([]string, len(rooms))
		for i, room := range rooms {
			channels[i] = s.prefix + string(room)
		}
		write := unsubscribe
		if isSubscribe {
			write = subscribe
		}
		if err := write(ctx, channels...); err != nil {
			return fmt.Errorf("write subscriptions: %w", err)
		}
	}
}

// readLoop hands on what comes until the connection breaks or falls silent.
func (s *subscriber) readLoop(ctx context.Context, pubsub *redis.PubSub, receive Receive) error {
	for {
		got, err := pubsub.ReceiveTimeout(ctx, silenceLimit)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch got := got.(type) {
		case *redis.Message:
			receive(roomOf(s.prefix, got.Channel), []byte(got.Payload))
		case *redis.Subscription:
			room := roomOf(s.prefix, got.Channel)
			if got.Kind == "sunsubscribe" && s.rooms.isConfirmed(room) {
				return errUnsubscribedByServer
			}
			s.rooms.answered(room)
		}
	}
}
