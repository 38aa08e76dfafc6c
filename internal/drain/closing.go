package drain

import (
	"context"
	"time"

	"switchyard/internal/protocol"
)

const (
	// The remaining clients reconnect within a second, so they are closed over
	// closeSpread, or longer, up to maxCloseSpread, if the other nodes could not
	// accept them that fast. In each closeInterval at least minCloseBatch clients
	// are closed.
	closeSpread    = 3 * time.Second
	maxCloseSpread = 10 * time.Second
	closeInterval  = 100 * time.Millisecond
	minCloseBatch  = 40
	// abortTimeout bounds the wait for the ends of the clients that were aborted.
	abortTimeout = time.Second
)

// closeAll closes every connection with 1012, a batch at a time, because the
// clients reconnect within a second, to nodes that accept as many handshakes as
// this node. It aborts clients that do not answer, and waits until all are gone, or for
// abortTimeout. It returns false if ctx ended first.
func (n *Node) closeAll(ctx context.Context) bool {
	clients := n.cfg.Clients
	count := clients.Count()
	spread := time.Duration(float64(count) / (targetLoad * float64(n.cfg.HandshakeRate)) * float64(time.Second))
	spread = min(max(spread, closeSpread), maxCloseSpread)
	step := max(minCloseBatch, count/int(spread/closeInterval)+1)
	for {
		closed := 0
		clients.Each(func(c Client) {
			if closed < step && c.CloseWith(protocol.CloseRestart) {
				closed++
			}
		})
		if closed < step {
			break // all are closing
		}
		if !sleep(ctx, closeInterval) {
			return false
		}
	}
	if n.awaitEmptied(ctx, n.cfg.CloseTimeout) {
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	clients.Each(Client.Abort)
	if !n.awaitEmptied(ctx, abortTimeout) && ctx.Err() == nil {
		n.cfg.Log.Warn("aborted clients are still connected", "clients", clients.Count())
	}
	return ctx.Err() == nil
}

// awaitEmptied waits until there is no client, and returns false if limit or ctx ended first.
func (n *Node) awaitEmptied(ctx context.Context, limit time.Duration) bool {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-n.cfg.Clients.Emptied():
		return true
	case <-timeout.C:
	case <-ctx.Done():
	}
	return false
}
