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
	// silenceLimit is how long a connection may say nothing, though pinged.
	silenceLimit = 3 * time.Second
	// chunk bounds the rooms of one SUBSCRIBE command.
	chunk = 256

	reconnectMin = 50 * time.Millisecond // doubled at each failure,
	reconnectMax = time.Second           // less up to a half at random
)

var errOneSocket = errors.New("this connection is over")

// A subscriber keeps one connection that receives. go-redis would mend a
// PubSub in silence; here each lives for one socket only, so that every
// connection is a generation of its own: it starts with nothing subscribed,
// and no answer of an earlier one counts.
type subscriber struct {
	opts    *redis.Options
	prefix  string
	logger  *slog.Logger
	metrics *metrics
	onUp    func() // called at each new connection; must not block
	rooms   *subscriptions
}

func (s *subscriber) subscribe(ctx context.Context, room message.Room) error {
	wait, err := s.rooms.want(room)
	if err != nil || wait == nil {
		return err
	}
	select {
	case err := <-wait:
		return err
	case <-ctx.Done():
		s.rooms.giveUp(room, wait)
		return fmt.Errorf("wait for Redis to confirm a subscription: %w", ctx.Err())
	}
}

// connectLoop runs one connection after the other until ctx ends.
func (s *subscriber) connectLoop(ctx context.Context, receive Receive) {
	defer s.rooms.close()
	connected, failures, said := 0, 0, ""
	for ctx.Err() == nil {
		err := s.runConnection(ctx, receive, func() {
			if connected++; connected > 1 {
				s.metrics.reconnects.Inc()
			}
			failures, said = 0, ""
			s.logger.Info("connected to Redis", "addr", s.opts.Addr, "db", s.opts.DB)
		})
		if ctx.Err() != nil {
			return
		}
		if err.Error() != said { // once an outage, not once an attempt
			said = err.Error()
			s.logger.Warn("Redis cannot be reached, messages go by the log", "addr", s.opts.Addr, "err", err)
		}
		select {
		case <-time.After(backoff(failures)):
			failures++
		case <-ctx.Done():
		}
	}
}

func backoff(failures int) time.Duration {
	d := min(reconnectMin<<min(failures, 10), reconnectMax)
	return d - rand.N(d/2)
}

// runConnection connects, calls up once Redis has answered a ping, and returns
// why the connection ended.
func (s *subscriber) runConnection(ctx context.Context, receive Receive, up func()) error {
	ctx, cancel := context.WithCancel(ctx)
	client := redis.NewClient(s.oneSocket())
	pubsub := client.Subscribe(ctx)
	var loops sync.WaitGroup
	defer func() {
		cancel()
		_ = pubsub.Close()
		loops.Wait()
		_ = client.Close()
		s.rooms.end()
		s.metrics.up.Set(0)
	}()
	// Receiving does not end with its context, but with its connection.
	stop := context.AfterFunc(ctx, func() { _ = pubsub.Close() })
	defer stop()

	if err := pubsub.Ping(ctx); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := pubsub.ReceiveTimeout(ctx, redisTimeout); err != nil {
		return fmt.Errorf("first ping: %w", err)
	}
	s.rooms.begin()
	s.metrics.up.Set(1)
	up()
	s.onUp()
	loops.Go(func() {
		defer cancel()
		s.writeLoop(ctx, pubsub)
	})
	return s.readLoop(ctx, pubsub, receive)
}

// oneSocket returns options with which a client dials once and never again.
func (s *subscriber) oneSocket() *redis.Options {
	opts := *s.opts
	dial := redis.NewDialer(&opts)
	var dialled atomic.Bool
	opts.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialled.Swap(true) {
			return nil, errOneSocket
		}
		return dial(ctx, network, addr)
	}
	return &opts
}

// writeLoop pings each second and writes what subscriptions want written,
// until ctx ends or writing fails.
func (s *subscriber) writeLoop(ctx context.Context, pubsub *redis.PubSub) {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-ping.C:
			err = pubsub.Ping(ctx)
		case <-s.rooms.kick:
			err = s.writeSubscriptions(ctx, pubsub)
		}
		if err != nil {
			return
		}
	}
}

func (s *subscriber) writeSubscriptions(ctx context.Context, pubsub *redis.PubSub) error {
	for {
		subscribe, rooms := s.rooms.next(chunk)
		if len(rooms) == 0 {
			return nil
		}
		channels := make([]string, len(rooms))
		for i, room := range rooms {
			channels[i] = s.prefix + string(room)
		}
		write := pubsub.Unsubscribe
		if subscribe {
			write = pubsub.Subscribe
		}
		if err := write(ctx, channels...); err != nil {
			return err
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
			s.rooms.answered(roomOf(s.prefix, got.Channel))
		}
	}
}
