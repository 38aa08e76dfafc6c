package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// retryInterval is how long Redis is left alone after it could not be reached:
// nobody who connects then has to wait for it.
const retryInterval = time.Second

// errBackingOff is what calls get meanwhile.
var errBackingOff = fmt.Errorf("%w: it did not answer a moment ago", message.ErrSharedStateUnavailable)

// health knows whether Redis answers, and says once when that changes.
type health struct {
	log     *slog.Logger
	metrics *metrics

	mu           sync.Mutex // Protects following.
	tried        bool
	down         bool
	causeUnknown bool // that it is was told, and no more than that it gave no answer
	retryAt      time.Time
	refused      map[string]bool // operations that Redis itself refused last time
}

func newHealth(log *slog.Logger, m *metrics) *health {
	return &health{log: log, metrics: m, refused: make(map[string]bool)}
}

func (h *health) isUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.down
}

// isBackingOff says whether there is no use in asking now.
func (h *health) isBackingOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down && time.Now().Before(h.retryAt)
}

// mayTry says whether a call is worth its while: while Redis is down one call a
// second finds out. The fleet's beat is that call, and always made.
func (h *health) mayTry(operation string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down || operation == opHeartbeat {
		return true
	}
	if time.Now().Before(h.retryAt) {
		return false
	}
	h.retryAt = time.Now().Add(retryInterval)
	return true
}

// record learns from the outcome of a round trip, counts it, and wraps what means
// that nobody was reached in message.ErrSharedStateUnavailable. It returns the first error.
func (h *health) record(ctx context.Context, operation string, took time.Duration, errs []error) error {
	var first, refusal error
	answered := false
	for i, err := range errs {
		switch {
		case err == nil:
			answered = true
		case isRefusal(err):
			answered, refusal = true, err
		default:
			errs[i] = fmt.Errorf("%w: %w", message.ErrSharedStateUnavailable, err)
		}
		if first == nil {
			first = errs[i]
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return first // we are closing: no news of Redis
	}
	h.metrics.observe(operation, took, first != nil)
	h.update(operation, answered, first, refusal)
	return first
}

// isRefusal says whether Redis was there and said no. During a failover the
// one that answers cannot do it: that counts as nobody there.
func isRefusal(err error) bool {
	var redisErr redis.Error
	if !errors.As(err, &redisErr) {
		return false
	}
	for _, prefix := range []string{"READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "TRYAGAIN"} {
		if redis.HasErrorPrefix(err, prefix) {
			return false
		}
	}
	return true
}

// update logs what is new.
func (h *health) update(operation string, answered bool, err, refusal error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, first := h.down, !h.tried
	h.tried = true
	if h.down = !answered; h.down {
		h.retryAt = time.Now().Add(retryInterval)
	}
	switch {
	case h.down && !was:
		h.metrics.up.Set(0)
		h.causeUnknown = isTimeout(err)
		h.log.Warn("Redis can't be reached: sessions are not kept, presence is unknown, limits count per node", "err", err)
	case h.down && h.causeUnknown && !isTimeout(err):
		h.causeUnknown = false
		h.log.Warn("why Redis can't be reached", "err", err)
	case !h.down && (was || first):
		h.metrics.up.Set(1)
		h.log.Info("Redis can be reached")
	}
	if h.down {
		return
	}
	if refusal != nil && !h.refused[operation] {
		h.log.Warn("Redis refuses", "operation", operation, "err", refusal)
	}
	if refusal == nil && h.refused[operation] {
		h.log.Info("Redis no longer refuses", "operation", operation)
	}
	h.refused[operation] = refusal != nil
}

// isTimeout says whether an error tells nothing but that there was no answer.
func isTimeout(err error) bool {
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}
