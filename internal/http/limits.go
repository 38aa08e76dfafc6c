package http

import (
	"fmt"
	"time"

	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// UserLimits limits what each user publishes on all nodes together.
type UserLimits interface {
	// AllowPublish counts a publish or signal of so many bytes and returns 0, or
	// counts nothing and returns how long the user must wait. The reader of each
	// socket calls it for every publish, so it must not block. The counts of other
	// nodes may be slightly old.
	AllowPublish(user string, bytes int) (wait time.Duration)
}

// Rates are limits per second. The burst is twice the rate. 0 is no limit.
type Rates struct {
	// Publish limits the publishes and signals of a connection, Bytes the bytes of
	// all its frames.
	Publish, Bytes int
	// Join limits the joins of a connection and all frames without a limit of their
	// own. The burst is at least MaxRooms, because a client that resumes joins all
	// its rooms at once.
	Join int
	// History limits the history and presence requests of a connection, and those
	// of a user over HTTP.
	History int
	// API limits the calls of an API key.
	API int
}

// The kinds of limits of a connection.
const (
	ratePublish = iota
	rateBytes
	rateJoin
	rateHistory
	rateAuth
	rateKinds
)

// authRate limits the auth frames of a connection: each costs the check of a
// signature, and a token lasts for minutes at least.
var authRate = ratelimit.Limit{PerSecond: 1, Burst: 10}

// A client that ignores rate_limited is closed after maxRefused refused frames. A
// pause of refusalResetPause without a refusal resets the count.
const (
	maxRefused        = 1000
	refusalResetPause = time.Second
)

// frameRates returns the limits of one connection, by kind.
func (r *Rates) frameRates(maxRooms int) (all [rateKinds]ratelimit.Limit) {
	all[ratePublish] = ratelimit.PerSecond(r.Publish)
	all[rateBytes] = ratelimit.PerSecond(r.Bytes)
	all[rateJoin] = ratelimit.Limit{PerSecond: r.Join, Burst: max(2*r.Join, maxRooms)}
	all[rateHistory] = ratelimit.PerSecond(r.History)
	all[rateAuth] = authRate
	return all
}

// readLimits returns the limits of a connection's reader on frames and bytes. They are
// twice as high as the rates, so that rate_limited always comes first. If one of the
// rates is unlimited, frames are, too.
func (r *Rates) readLimits(maxRooms int) (frames, bytes ratelimit.Limit) {
	if r.Publish > 0 && r.Join > 0 && r.History > 0 {
		each := 2 * (r.Publish + r.Join + r.History)
		frames = ratelimit.Limit{PerSecond: each, Burst: 2*each + maxRooms}
	}
	return frames, ratelimit.PerSecond(2 * r.Bytes)
}

// rateKind returns the limit that a frame counts against, beside its bytes.
func rateKind(t protocol.Type) int {
	switch t {
	case protocol.TypePublish, protocol.TypeSignal:
		return ratePublish
	case protocol.TypeHistory, protocol.TypePresence:
		return rateHistory
	case protocol.TypeAuth:
		return rateAuth
	case protocol.TypeJoin, protocol.TypeLeave, protocol.TypeMoved:
	}
	return rateJoin
}

// A rateUsage is what one connection has used of its limits. It belongs to the
// connection's reader.
type rateUsage struct {
	states       [rateKinds]ratelimit.State
	refusedInRow int           // since the last pause
	lastRefused  time.Duration // when the last frame was refused
}

// checkRates counts a frame against the limits of its connection and its user, or
// returns the error rate_limited. Too many refusals close the
// connection: see ignoresRefusals.
func (sock *socket) checkRates(r *protocol.Request, size int) error {
	s, now := sock.server, sock.server.cfg.now()
	wait := sock.usage.states[rateBytes].Take(s.frameLimits[rateBytes], now, size)
	limitName := "bytes"
	if wait == 0 {
		kind := rateKind(r.Type)
		wait = sock.usage.states[kind].Take(s.frameLimits[kind], now, 1)
		limitName = [rateKinds]string{"publishes", "bytes", "frames", "reads", "auth frames"}[kind]
		if wait == 0 && kind == ratePublish && sock.identity.User != "" && s.cfg.UserLimits != nil {
			wait = s.cfg.UserLimits.AllowPublish(sock.identity.User, size)
			limitName = "publishes or bytes of this user"
		}
	}
	if wait == 0 {
		return nil
	}
	if now-sock.usage.lastRefused > refusalResetPause {
		sock.usage.refusedInRow = 0
	}
	sock.usage.refusedInRow, sock.usage.lastRefused = sock.usage.refusedInRow+1, now
	return rateLimited("too many "+limitName+" a second; send it again after retry_after_ms", wait)
}

// ignoresRefusals reports whether a client has ignored too many refusals.
func (u *rateUsage) ignoresRefusals() bool { return u.refusedInRow > maxRefused }

func rateLimited(text string, wait time.Duration) error {
	// Rounded up to the milliseconds of retry_after_ms, because 0 would mean that
	// no time is given.
	wait = (wait + time.Millisecond - 1).Truncate(time.Millisecond)
	return &protocol.Error{Code: protocol.CodeRateLimited, Message: text, RetryAfter: wait}
}

// errAPIKeyRate refuses a call of an API key that makes too many.
func errAPIKeyRate(name string, wait time.Duration) error {
	return rateLimited(fmt.Sprintf("too many calls a second with the key %s; see RATE_API", name), wait)
}
