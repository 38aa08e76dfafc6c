package broker

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// roundTripBytes bounds one pipelined round trip, so that it fits in
// redisTimeout on a slow link too.
const roundTripBytes = 4 << 20

// A publisher sends what is queued, everything that waits in one round trip.
// Nothing is retried: a message comes by the log, a signal must not come twice.
type publisher struct {
	client  *redis.Client
	channel func(message.Room) string
	sharded bool
	logger  *slog.Logger
	metrics *metrics
	queue   *queue
	up      func() bool
	// moved takes back what the server refused because another one, at to, has
	// its bucket; false means that it does not.
	reroute func(p publication, to string) bool
	drained chan struct{} // closed by drainLoop when the queue is closed and empty

	// Owned by drainLoop.
	failing bool
}

// drainLoop runs until ctx ends. While Redis is down it leaves the queue as it
// is: after a short outage the youngest publications still go out.
func (p *publisher) drainLoop(ctx context.Context) {
	var batch []publication
	for {
		select {
		case <-p.queue.wake:
		case <-ctx.Done():
			return
		}
		for p.up() && ctx.Err() == nil {
			batch = p.queue.dequeue(batch[:0], roundTripBytes)
			if len(batch) == 0 {
				break
			}
			p.send(ctx, p.fresh(batch))
			clear(batch) // let go of the payloads
		}
		if p.queue.drained() {
			close(p.drained)
			<-ctx.Done()
			return
		}
	}
}

// fresh returns what of the batch is young enough to send.
func (p *publisher) fresh(batch []publication) []publication {
	stale := 0
	for stale < len(batch) && time.Since(batch[stale].at) > staleAfter {
		stale++
	}
	p.metrics.drop(dropStale, stale)
	return batch[stale:]
}

func (p *publisher) send(ctx context.Context, batch []publication) {
	if len(batch) == 0 {
		return
	}
	pipe := p.client.Pipeline()
	for i := range batch {
		if p.sharded {
			pipe.SPublish(ctx, p.channel(batch[i].room), batch[i].payload)
		} else {
			pipe.Publish(ctx, p.channel(batch[i].room), batch[i].payload)
		}
	}
	began := batch[0].at
	cmds, _ := pipe.Exec(ctx) // each command has its own error
	failed, err := p.handleErrors(batch, cmds)
	if failed == 0 {
		p.failing = false
		p.metrics.publish.Observe(time.Since(began).Seconds())
		return
	}
	p.metrics.drop(dropFailed, failed)
	if !p.failing && ctx.Err() == nil { // once an outage
		p.logger.Warn("Redis did not take publications", "count", failed, "err", err)
	}
	p.failing = true
}

// handleErrors sends on what belongs elsewhere, and counts what failed.
func (p *publisher) handleErrors(batch []publication, cmds []redis.Cmder) (failed int, first error) {
	for i, cmd := range cmds {
		err := cmd.Err()
		if err == nil {
			continue
		}
		if to, ok := movedTo(err, p.client.Options().Addr); ok && p.reroute(batch[i], to) {
			continue
		}
		if failed++; failed == 1 {
			first = err
		}
	}
	return failed, first
}
