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
	prefix  string
	logger  *slog.Logger
	metrics *metrics
	queue   *queue
	up      func() bool
	idle    chan struct{} // closed by drainLoop when the queue is closed and empty

	// Owned by drainLoop.
	failing bool
}

func (p *publisher) publish(room message.Room, payload []byte) {
	dropped, ok := p.queue.push(publication{room: room, payload: payload, at: time.Now()})
	switch {
	case !ok:
		p.metrics.drop(dropClosed, 1)
	case dropped > 0 && !p.up():
		p.metrics.drop(dropDown, dropped)
	default:
		p.metrics.drop(dropFull, dropped)
	}
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
			batch = p.queue.take(batch[:0], roundTripBytes)
			if len(batch) == 0 {
				break
			}
			p.send(ctx, p.fresh(batch))
			clear(batch) // let go of the payloads
		}
		if p.queue.drained() {
			close(p.idle)
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
		pipe.Publish(ctx, p.prefix+string(batch[i].room), batch[i].payload)
	}
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		p.failing = false
		p.metrics.publish.Observe(time.Since(batch[0].at).Seconds())
		return
	}
	failed := 0
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			failed++
		}
	}
	p.metrics.drop(dropFailed, failed)
	if !p.failing && ctx.Err() == nil { // once an outage
		p.logger.Warn("Redis did not take publications", "count", failed, "err", err)
	}
	p.failing = true
}
