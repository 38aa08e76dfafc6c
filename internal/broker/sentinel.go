package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

const (
	// sentinelGrace is how long a slow sentinel is waited for once a majority
	// has answered.
	sentinelGrace = 50 * time.Millisecond
	// switchEvent is the channel on which a sentinel tells of a new master.
	switchEvent = "+switch-master"
)

// sentinels are asked for the master, all at once. go-redis' FailoverClient
// believes the first that answers, which may have been cut off from the
// others; here the answer of the youngest configuration (the greatest
// config-epoch) counts, and publisher and subscriber follow the same one.
type sentinels struct {
	place *place
}

func newSentinels(p *place) *sentinels { return &sentinels{place: p} }

type sentinelAnswer struct {
	addr  string
	epoch int
	err   error
}

// discover returns the master as owner of the one bucket.
func (s *sentinels) discover(ctx context.Context, _ []string) (owners, error) {
	count := len(s.place.addrs)
	answers := make(chan sentinelAnswer, count)
	for _, addr := range s.place.addrs {
		go func() { answers <- s.ask(ctx, addr) }() // bounded by redisTimeout
	}
	best := sentinelAnswer{epoch: -1}
	var errs []error
	var enough <-chan time.Time
	for good := 0; good+len(errs) < count; {
		select {
		case a := <-answers:
			if a.err != nil {
				errs = append(errs, a.err)
				continue
			}
			if a.epoch > best.epoch {
				best = a
			}
			if good++; good == count/2+1 {
				enough = time.After(sentinelGrace)
			}
			continue
		case <-enough:
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
		break
	}
	if best.addr == "" {
		return nil, errors.Join(errs...)
	}
	return func(int) string { return best.addr }, nil
}

// ask asks one sentinel. The address of GET-MASTER-ADDR-BY-NAME is already the
// new one while a failover ends; the epoch is told by MASTER only.
func (s *sentinels) ask(ctx context.Context, addr string) sentinelAnswer {
	client := redis.NewClient(at(s.place.sentinel, addr))
	defer func() { _ = client.Close() }()
	pipe := client.Pipeline()
	where := redis.NewStringSliceCmd(ctx, "sentinel", "get-master-addr-by-name", s.place.master)
	about := redis.NewMapStringStringCmd(ctx, "sentinel", "master", s.place.master)
	_ = pipe.Process(ctx, where)
	_ = pipe.Process(ctx, about)
	if _, err := pipe.Exec(ctx); err != nil && errors.Is(where.Err(), redis.Nil) {
		return sentinelAnswer{err: fmt.Errorf("sentinel %s knows no master named %s", addr, s.place.master)}
	} else if err != nil {
		return sentinelAnswer{err: fmt.Errorf("ask sentinel %s for the master: %w", addr, err)}
	}
	epoch, err := strconv.Atoi(about.Val()["config-epoch"])
	if pair := where.Val(); err == nil && len(pair) == 2 {
		return sentinelAnswer{addr: net.JoinHostPort(pair[0], pair[1]), epoch: epoch}
	}
	return sentinelAnswer{err: fmt.Errorf("sentinel %s gave an answer that makes no sense", addr)}
}

// listeners are subscribed to what each sentinel tells of masters. That a
// sentinel goes is no news: discover tells when none is left.
func (s *sentinels) listeners(changed func()) []*subscriber {
	var all []*subscriber
	for _, addr := range s.place.addrs {
		rooms := newSubscriptions()
		_, _ = rooms.want(message.Room(switchEvent)) // made at each connection
		all = append(all, &subscriber{
			opts: s.place.sentinel, logger: slog.New(slog.DiscardHandler), metrics: newMetrics(nil),
			rooms: rooms, locate: fixed(addr), onChange: changed,
		})
	}
	return all
}
