package broker

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// roundTripBytes bounds the payloads of one pipelined round trip, so that it
// stays within redisTimeout even on a slow network.
const roundTripBytes = 4 << 20

// A publisher sends the queued broadcasts to one server, as many as possible
// in each round trip. It never retries: the log delivers messages, and a signal
// must not arrive twice.
type publisher struct {
	client  *redis.Client
	next    chan *redis.Client // replaces client, which is then closed
	channel func(message.Room) string
	sharded bool
	logger  *slog.Logger
	metrics *metrics
	queue   *queue
	up      func() bool
	// reroute sends a broadcast to the server at to, which owns its bucket
	// according to a MOVED error. It returns false after too many attempts.
	reroute      func(p broadcast, to string) bool
	sendLoopDone chan struct{} // closed by sendLoop when the queue is closed and empty

	// Owned by sendLoop.
	failing bool
}

// sendLoop sends the queue's broadcasts until ctx ends. While Redis is down
// it leaves them in the queue, so that the newest are still sent after a short
// outage.
func (p *publisher) sendLoop(ctx context.Context) {
	var batch []broadcast
	for {
		select {
		case <-p.queue.wake:
		case next := <-p.next:
			_ = p.client.Close()
			p.client = next
		case <-ctx.Done():
			return
		}
		for p.up() && ctx.Err() == nil && len(p.next) == 0 {
			batch = p.queue.dequeue(batch[:0], roundTripBytes)
			if len(batch) == 0 {
				break
			}
			p.send(ctx, p.fresh(batch))
			clear(batch) // release the payloads
		}
		if p.queue.closedAndEmpty() {
			close(p.sendLoopDone)
			<-ctx.Done()
			return
		}
	}
}

// closeClients closes the connection, and the one that would have replaced it.
// sendLoop and the renewal have ended.
func (p *publisher) closeClients() {
	_ = p.client.Close()
	select {
	case next := <-p.next:
		_ = next.Close()
	default:
	}
}

// fresh returns the batch without the broadcasts older than staleAfter, which
// it counts as dropped.
func (p *publisher) fresh(batch []broadcast) []broadcast {
	stale := 0
	for stale < len(batch) && time.Since(batch[stale].at) > staleAfter {
		stale++
	}
	p.metrics.drop(dropStale, stale)
	return batch[stale:]
}

// send publishes a batch in one round trip.
func (p *publisher) send(ctx context.Context, batch []broadcast) {
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
	if !p.failing && ctx.Err() == nil { // log an outage once
		p.logger.Warn("Redis did not accept broadcasts", "count", failed, "error", err)
	}
	p.failing = true
}

// handleErrors reroutes the broadcasts that another server owns, and returns
// the number of the others that failed, with the first error.
func (p *publisher) handleErrors(batch []broadcast, cmds []redis.Cmder) (failed int, first error) {
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
