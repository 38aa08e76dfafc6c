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
	// sentinelGrace is how long discover waits for the rest of the sentinels
	// after a majority has answered.
	sentinelGrace = 50 * time.Millisecond
	// switchMasterChannel is the channel on which a sentinel announces a new master.
	switchMasterChannel = "+switch-master"
)

// sentinels queries all sentinels for the master at the same time. go-redis'
// FailoverClient believes the first that answers, which may be partitioned from
// the others. Here the newest configuration counts (the greatest config-epoch),
// and publisher and subscriber use the same master.
type sentinels struct {
	config *redisConfig
}

func newSentinels(c *redisConfig) *sentinels { return &sentinels{config: c} }

type sentinelReply struct {
	addr  string
	epoch int
	err   error
}

// discover returns the master as the owner of the one bucket.
func (s *sentinels) discover(ctx context.Context, _ []string) (ownerFunc, error) {
	count := len(s.config.addrs)
	answers := make(chan sentinelReply, count)
	for _, addr := range s.config.addrs {
		go func() { answers <- s.query(ctx, addr) }() // bounded by redisTimeout
	}
	best := sentinelReply{epoch: -1}
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

// query asks one sentinel with two commands: near the end of a failover only
// GET-MASTER-ADDR-BY-NAME has the new address, and only MASTER has the epoch.
func (s *sentinels) query(ctx context.Context, addr string) sentinelReply {
	client := redis.NewClient(withAddr(s.config.sentinel, addr))
	defer func() { _ = client.Close() }()
	pipe := client.Pipeline()
	addrCmd := redis.NewStringSliceCmd(ctx, "sentinel", "get-master-addr-by-name", s.config.master)
	masterCmd := redis.NewMapStringStringCmd(ctx, "sentinel", "master", s.config.master)
	_ = pipe.Process(ctx, addrCmd)
	_ = pipe.Process(ctx, masterCmd)
	if _, err := pipe.Exec(ctx); err != nil && errors.Is(addrCmd.Err(), redis.Nil) {
		return sentinelReply{err: fmt.Errorf("sentinel %s knows no master named %s", addr, s.config.master)}
	} else if err != nil {
		return sentinelReply{err: fmt.Errorf("query sentinel %s for the master: %w", addr, err)}
	}
	epoch, err := strconv.Atoi(masterCmd.Val()["config-epoch"])
	if pair := addrCmd.Val(); err == nil && len(pair) == 2 {
		return sentinelReply{addr: net.JoinHostPort(pair[0], pair[1]), epoch: epoch}
	}
	return sentinelReply{err: fmt.Errorf("sentinel %s returned an invalid answer", addr)}
}

// listeners returns a subscriber for each sentinel, which calls changed when
// the sentinel announces a new master or its connection begins or ends. It logs
// nothing: a lost sentinel matters only when discover reaches none.
func (s *sentinels) listeners(changed func()) []*subscriber {
	var all []*subscriber
	for _, addr := range s.config.addrs {
		rooms := newSubscriptions()
		_, _ = rooms.add(message.Room(switchMasterChannel)) // subscribed on each connection
		all = append(all, &subscriber{
			opts: s.config.sentinel, logger: slog.New(slog.DiscardHandler), metrics: newMetrics(nil),
			rooms: rooms, locate: fixedAddr(addr), onChange: changed,
		})
	}
	return all
}
