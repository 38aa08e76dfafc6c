package http

import (
	"fmt"
	"time"

	"switchyard/internal/protocol"
)

// UserLimits counts what each user publishes on all nodes together.
type UserLimits interface {
	// AllowPublish books a publish or signal of so many bytes, or books nothing and
	// says how long the user is to wait until it would go through. It is asked
	// for every one of them, by who reads the socket, and must not block: what
	// other nodes counted may be a little old.
	AllowPublish(user string, bytes int) (wait time.Duration)
}

// Rates are how much may happen in a second; twice as much may come at once.
// 0 is no limit.
type Rates struct {
	// Publish is for publishes and signals of a connection, Bytes for the
	// bytes of all frames that it sends.
	Publish, Bytes int
	// Join is for joins and all other frames of a connection but those counted
	// by the rest. Those for MaxRooms rooms may come at once: a client that
	// resumes joins them all.
	Join int
	// History is for the history and presence calls of a connection, and for
	// those of a user over HTTP.
	History int
	// API is for the calls of an API key.
	API int
}

// Kinds of frames, as they are counted.
const (
	ratePublish = iota
	rateBytes
	rateJoin
	rateHistory
	rateAuth
	rateKinds
)

// authRate is for the auth frames of a connection: each costs a signature's
// check, and a token lasts for minutes at least.
var authRate = rateLimit{1, 10}

// patience for clients that ignore rate_limited: so many refused frames,
// without a pause of calm between them, end the connection.
const (
	maxRefused        = 1000
	refusalResetPause = time.Second
)

// frameRates are those of one connection, by kind.
func (r *Rates) frameRates(maxRooms int) (all [rateKinds]rateLimit) {
	all[ratePublish] = perSecond(r.Publish)
	all[rateBytes] = perSecond(r.Bytes)
	all[rateJoin] = rateLimit{r.Join, max(2*r.Join, maxRooms)}
	all[rateHistory] = perSecond(r.History)
	all[rateAuth] = authRate
	return all
}

// rateKind says which rate a frame counts against, beside its bytes.
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

// A rateUsage is what one connection has taken of its rates. It belongs to the
// connection's reader.
type rateUsage struct {
	states       [rateKinds]gcraState
	refusedInRow int           // since the last calm
	lastRefused  time.Duration // when a frame was refused last
}

// checkRates books a frame of a connection, or refuses it: with rate_limited for
// a frame, and with an end for who goes on all the same.
func (k *socket) checkRates(r *protocol.Request, size int) error {
	s, now := k.server, k.server.cfg.now()
	wait := k.usage.states[rateBytes].take(s.frameLimits[rateBytes], now, size)
	limitName := "bytes"
	if wait == 0 {
		kind := rateKind(r.Type)
		wait = k.usage.states[kind].take(s.frameLimits[kind], now, 1)
		limitName = [rateKinds]string{"publishes", "bytes", "frames", "reads", "auth frames"}[kind]
		if wait == 0 && kind == ratePublish && k.identity.User != "" && s.cfg.UserLimits != nil {
			wait = s.cfg.UserLimits.AllowPublish(k.identity.User, size)
			limitName = "publishes or bytes of this user"
		}
	}
	if wait == 0 {
		return nil
	}
	if now-k.usage.lastRefused > refusalResetPause {
		k.usage.refusedInRow = 0
	}
	k.usage.refusedInRow, k.usage.lastRefused = k.usage.refusedInRow+1, now
	return rateLimited("too many "+limitName+" a second; send it again after retry_after_ms", wait)
}

// ignoresRefusals says that a client has ignored too many refusals.
func (k *socket) ignoresRefusals() bool { return k.usage.refusedInRow > maxRefused }

func rateLimited(text string, wait time.Duration) error {
	// Rounded up to what is told, never to 0, which would leave it open.
	wait = (wait + time.Millisecond - 1).Truncate(time.Millisecond)
	return &protocol.Error{Code: protocol.CodeRateLimited, Message: text, RetryAfter: wait}
}

// errAPIKeyRate refuses a call of an API key that calls too often.
func errAPIKeyRate(name string, wait time.Duration) error {
	return rateLimited(fmt.Sprintf("too many calls a second with the key %s; see RATE_API", name), wait)
}
