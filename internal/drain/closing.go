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
)

// closeAll closes every connection with 1012, a batch at a time, because the
// clients reconnect within a second, to nodes that accept as many handshakes as
// this node. It aborts clients that do not answer. It returns false if ctx ended first.
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
	timeout := time.NewTimer(n.cfg.CloseTimeout)
	defer timeout.Stop()
	select {
	case <-clients.Emptied():
	case <-timeout.C:
		clients.Each(Client.Abort)
	case <-ctx.Done():
		return false
	}
	return true
}
