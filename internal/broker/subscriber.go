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

	"switchyard/internal/message"
)

const (
	pingEvery = time.Second
	// silenceLimit is how long a connection may receive nothing, not even the
	// answer to a ping, before it is replaced.
	silenceLimit = 3 * time.Second
	// maxRoomsPerCommand bounds the rooms of one SUBSCRIBE command.
	maxRoomsPerCommand = 256

	// A reconnect waits for reconnectMin, doubled at each failure up to
	// reconnectMax, less a random part of up to a half.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = time.Second
)

var (
	errAlreadyDialed        = errors.New("the client may dial only once")
	errOwnerChanged         = errors.New("another server owns the rooms now")
	errUnsubscribedByServer = errors.New("the server has ended a subscription") // it sent an unrequested sunsubscribe
	errIdle                 = errors.New("no room is subscribed")
)

// A subscriber keeps one connection that receives broadcasts. go-redis would
// silently reconnect a PubSub, so each PubSub is used for one socket only:
// every connection begins without subscriptions, and no answer from an earlier
// connection can confirm one.
type subscriber struct {
	opts                redis.Options // Addr is set for each connection
	prefix              string
	sharded             bool
	quiet               bool // log only errors that Redis itself returned
	logger              *slog.Logger
	metrics             *metrics
	rooms               *subscriptions
	ownerMayHaveChanged chan struct{} // holds a token when isOwner may have changed; nil: never
	probe               message.Room  // of a renewal, which only counts its subscribers; "": none
	connection          atomic.Int64  // the number of the present connection, or of the last one
	abandoned           chan abandonment

	// locate returns the address to connect to after the last connection.
	locate func(ctx context.Context, last connectionResult) (string, error)
	// isOwner reports whether the server at addr still owns the rooms; nil: always.
	isOwner func(addr string) bool
	// checkIdle is called at each ping and failed attempt; true ends
	// connectLoop. Nil: never.
	checkIdle func() bool
	// onChange is called when a connection has begun or ended. It must not block.
	onChange func()
}

// reconnectNow makes the subscriber compare its server with the owner, or end its
// backoff. It never blocks.
func (s *subscriber) reconnectNow() {
	select {
	case s.ownerMayHaveChanged <- struct{}{}:
	default:
	}
}

// An abandonment is the reason for which one connection must end.
type abandonment struct {
	connection int64
	reason     error
}

// abandon ends the connection with this number, if it is still the present one,
// and makes the subscriber connect again. It never blocks.
func (s *subscriber) abandon(connection int64, reason error) {
	select {
	case s.abandoned <- abandonment{connection, reason}:
	default:
	}
}

// connectLoop runs one connection after the other until ctx ends, or until
// checkIdle returns true.
func (s *subscriber) connectLoop(ctx context.Context, receive Receive) {
	connected, failures, lastLogged := 0, 0, ""
	var last connectionResult
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

// logFailure logs why there is no connection. It logs an outage once, not each
// attempt, and returns the text of the logged error. A moved bucket is not an
// outage.
func (s *subscriber) logFailure(last connectionResult, lastLogged string) string {
	if errors.Is(last.err, errMoved) {
		s.logger.Info("Redis is another server now; reconnecting", "addr", last.addr)
		return lastLogged
	}
	_, redirected := redis.IsMovedError(last.err)
	if redirected || errors.Is(last.err, errOwnerChanged) || errors.Is(last.err, errUnsubscribedByServer) || last.err.Error() == lastLogged {
		return lastLogged
	}
	var refused redis.Error
	if !s.quiet || errors.As(last.err, &refused) {
		s.logger.Warn("Redis cannot be reached; messages are delivered through the log", "addr", last.addr, "error", last.err)
	}
	return last.err.Error()
}

func backoff(failures int) time.Duration {
	d := min(reconnectMin<<min(failures, 10), reconnectMax)
	return d - rand.N(d/2)
}

// runConnection connects, calls onUp once Redis has answered a ping, and, when
// the connection has ended, returns why.
func (s *subscriber) runConnection(
	ctx context.Context, last connectionResult, receive Receive, onUp func(addr string),
) (result connectionResult) {
	addr, err := s.locate(ctx, last)
	if err != nil {
		s.rooms.disconnected()
		return connectionResult{err: err}
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
			s.rooms.disconnectedIdle() // a new subscription waits for the next connection
		} else {
			s.rooms.disconnected()
		}
		s.onChange()
	}()
	// ReceiveTimeout does not end with its context, but with its connection.
	stop := context.AfterFunc(ctx, func() { _ = pubsub.Close() })
	defer stop()

	if err := pubsub.Ping(ctx); err != nil {
		return connectionResult{addr, fmt.Errorf("connect: %w", err)}
	}
	if _, err := pubsub.ReceiveTimeout(ctx, redisTimeout); err != nil {
		return connectionResult{addr, fmt.Errorf("first ping: %w", err)}
	}
	s.connection.Add(1)
	s.rooms.connected()
	onUp(addr)
	s.onChange()
	loops.Go(func() { cancel(s.writeLoop(ctx, addr, pubsub)) })
	err = s.readLoop(ctx, pubsub, receive)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // why writeLoop ended: the error of readLoop only says that its socket was closed
	}
	return connectionResult{addr, err}
}

// dialOnceOptions returns options with which a client can dial only once.
func dialOnceOptions(opts redis.Options, addr string) *redis.Options {
	one := withAddr(opts, addr)
	dial := one.Dialer
	if dial == nil {
		dial = redis.NewDialer(one)
	}
	var dialed atomic.Bool
	one.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, errAlreadyDialed
		}
		return dial(ctx, network, addr)
	}
	return one
}

// writeLoop pings each second and writes the commands of the subscriptions. It
// ends when ctx ends, when a write fails, when another server owns the rooms,
// when the connection is abandoned, or when it is idle.
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
		case a := <-s.abandoned:
			if a.connection == s.connection.Load() {
				err = a.reason
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

// writeSubscriptions writes SUBSCRIBE and UNSUBSCRIBE commands until none is due.
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

// readLoop calls receive with each broadcast, and counts the answers to
// commands, until the connection breaks or falls silent.
func (s *subscriber) readLoop(ctx context.Context, pubsub *redis.PubSub, receive Receive) error {
	for {
		got, err := pubsub.ReceiveTimeout(ctx, silenceLimit)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch got := got.(type) {
		case *redis.Message:
			if room := roomOf(s.prefix, got.Channel); room != s.probe {
				receive(room, []byte(got.Payload))
			}
		case *redis.Subscription:
			room := roomOf(s.prefix, got.Channel)
			if got.Kind == "sunsubscribe" && s.rooms.isConfirmed(room) {
				return errUnsubscribedByServer
			}
			s.rooms.answered(room)
		}
	}
}
