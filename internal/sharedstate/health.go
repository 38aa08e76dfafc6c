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

// retryInterval is the pause between attempts to reach Redis while it is down.
// In between, calls fail at once, so that no new connection waits for Redis.
const retryInterval = time.Second

// refusalSpan is how long a refusal counts after Redis was last heard to refuse. The
// heartbeat writes each second, so that it neither ends between two refusals nor lasts
// long after the last one.
const refusalSpan = 5 * time.Second

// The states of the shared state: all values of the component in /readyz.
const (
	stateUp      = "up"
	stateDown    = "down"    // the last attempt did not reach Redis
	stateRefused = "refused" // Redis answers and refuses to store
)

// errBackingOff is the error of calls that fail without an attempt.
var errBackingOff = fmt.Errorf("%w: it did not answer a moment ago", message.ErrSharedStateUnavailable)

// A health tracks whether Redis answers and which operations it refuses. It
// logs each change once. It is safe for concurrent use.
type health struct {
	log     *slog.Logger
	metrics *metrics

	mu           sync.Mutex // Protects following.
	tried        bool
	down         bool
	causeUnknown bool // the outage was logged with a timeout, which names no cause
	retryAt      time.Time
	refused      map[string]bool // by operation: Redis refused the last call
	refusedAt    time.Time       // when Redis last refused to store something, or zero
}

func newHealth(log *slog.Logger, m *metrics) *health {
	return &health{log: log, metrics: m, refused: make(map[string]bool)}
}

// state returns one of the states above.
func (h *health) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stateLocked()
}

func (h *health) stateLocked() string {
	switch {
	case h.down:
		return stateDown
	case !h.refusedAt.IsZero() && time.Since(h.refusedAt) < refusalSpan:
		return stateRefused
	}
	return stateUp
}

// isBackingOff reports whether Redis is down and its next attempt not due yet.
func (h *health) isBackingOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down && time.Now().Before(h.retryAt)
}

// mayTry reports whether a caller may attempt an operation. While Redis is down
// it lets one call a second through. The heartbeat is always attempted, so
// Redis is tried even if no one else calls.
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

// record evaluates and counts the outcome of a round trip: the errors of its
// parts. It wraps each error which means that Redis was not reached in
// message.ErrSharedStateUnavailable, in place, and returns the first error.
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
		return first // the node is closing, which says nothing about Redis
	}
	h.metrics.observe(operation, took, first != nil)
	h.update(operation, answered, first, refusal)
	return first
}

// isRefusal reports whether Redis answered with an error. A server that answers
// during a failover cannot serve the call: that counts as not reached.
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

// refusesToStore reports whether a refusal is of the server and not of one key: it is
// full, it cannot write to its disk or to its replicas, or the user lacks the
// password or a right.
func refusesToStore(refusal error) bool {
	for _, prefix := range []string{"OOM", "MISCONF", "NOREPLICAS", "NOPERM", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(refusal, prefix) {
			return true
		}
	}
	return false
}

// update stores the new state and logs what has changed.
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
		h.causeUnknown = isTimeout(err)
		h.log.Warn("Redis can't be reached: sessions are not kept, presence is unknown, limits count per node", "err", err)
	case h.down && h.causeUnknown && !isTimeout(err):
		h.causeUnknown = false
		h.log.Warn("the reason why Redis can't be reached", "err", err)
	case !h.down && (was || first):
		h.log.Info("Redis can be reached")
	}
	if refusal != nil && refusesToStore(refusal) {
		h.refusedAt = time.Now()
	}
	h.metrics.up.Set(boolValue(h.stateLocked() == stateUp))
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

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// isTimeout reports whether an error says only that no answer came in time.
func isTimeout(err error) bool {
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}
