package http

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// UserLimits limits what each user publishes and reads on all nodes together.
type UserLimits interface {
	// AllowPublish counts a publish or signal of so many bytes and returns 0, or
	// counts nothing and returns how long the user must wait. The reader of each
	// socket calls it for every publish, so it must not block. The counts of other
	// nodes may be slightly old.
	AllowPublish(user string, bytes int) (wait time.Duration)
	// AllowRead counts a read of history or presence of a reader, a user or an
	// address, likewise. ChargeRead counts the bytes of one over HTTP; the hub counts
	// those that it sends itself.
	AllowRead(reader string) (wait time.Duration)
	ChargeRead(reader string, bytes int)
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
	// UserPublish and UserBytes are what UserLimits allows. Welcomes report it.
	UserPublish, UserBytes int
	// UserHistory and UserReadBytes are what UserLimits lets a reader read.
	UserHistory, UserReadBytes int
}

// The kinds of limits of a connection. The first ones go on where the session's last
// connection ended; the others begin anew, so that a client can join its rooms.
const (
	ratePublish = iota
	rateBytes
	rateHistory
	rateJoin
	rateAuth
	rateKinds
	carriedKinds = rateJoin
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

// maxRefusedRooms bounds the rooms of a connection whose last publish was refused.
const maxRefusedRooms = 1000

// frameRates returns the limits of one connection, by kind.
func (r *Rates) frameRates(maxRooms int) (all [rateKinds]ratelimit.Limit) {
	all[ratePublish] = ratelimit.PerSecond(r.Publish)
	all[rateBytes] = ratelimit.PerSecond(r.Bytes)
	all[rateJoin] = ratelimit.Limit{PerSecond: r.Join, Burst: max(2*r.Join, maxRooms)}
	all[rateHistory] = ratelimit.PerSecond(r.History)
	all[rateAuth] = authRate
	return all
}

// remainingLimits returns the limits that a welcome reports. u is what it has used. A user's are
// those of all the user's connections, so a single one should not use more.
func (s *Server) remainingLimits(u *rateUsage, user string) *protocol.Limits {
	now, limits := s.cfg.now(), s.frameLimits
	if user != "" && s.cfg.UserLimits != nil {
		limits[ratePublish] = stricter(limits[ratePublish], ratelimit.PerSecond(s.cfg.Rates.UserPublish))
		limits[rateBytes] = stricter(limits[rateBytes], ratelimit.PerSecond(s.cfg.Rates.UserBytes))
	}
	if s.cfg.UserLimits != nil {
		limits[rateHistory] = stricter(limits[rateHistory], ratelimit.PerSecond(s.cfg.Rates.UserHistory))
	}
	states := u.states
	if u.carried != nil {
		used := u.carried.used()
		copy(states[:], used[:])
	}
	limit := func(kind int) *protocol.Limit {
		l := limits[kind]
		if l.PerSecond <= 0 {
			return nil
		}
		return &protocol.Limit{PerSecond: l.PerSecond, Burst: l.Burst, Left: states[kind].Left(l, now)}
	}
	return &protocol.Limits{Publish: limit(ratePublish), Bytes: limit(rateBytes), Join: limit(rateJoin), History: limit(rateHistory)}
}

// readerOf returns the name by which the reads of a user are counted, or those of an
// address for anonymous users; "" if they are not counted.
func readerOf(user string, network netip.Prefix) string {
	switch {
	case user != "":
		return "u:" + user
	case network.IsValid():
		return "a:" + network.String()
	}
	return ""
}

// stricter returns the limit with the lower rate.
func stricter(a, b ratelimit.Limit) ratelimit.Limit {
	if a.PerSecond <= 0 || b.PerSecond > 0 && b.PerSecond < a.PerSecond {
		return b
	}
	return a
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
	case protocol.TypeJoin, protocol.TypeLeave, protocol.TypeMoved, protocol.TypePing:
	}
	return rateJoin
}

// refusedAgainAfter is when to send a publish again that must not overtake another:
// once that one is sent again.
const refusedAgainAfter = time.Millisecond

// A rateUsage is what one connection has used of its limits. It belongs to the
// connection's reader.
type rateUsage struct {
	carried      *allowance // of the session; nil until the client is identified
	states       [rateKinds]ratelimit.State
	freeJoins    int           // that still count for nothing: those of a resumed session's rooms
	refusedInRow int           // since the last pause
	lastRefused  time.Duration // when the last frame was refused

	// refusedRooms are those whose last publish was refused; with tooManyRefused there
	// were more of them than are known.
	refusedRooms   map[message.Room]struct{}
	tooManyRefused bool
}

// take uses n events of a limit, or returns how long to wait for them.
func (u *rateUsage) take(kind int, l ratelimit.Limit, now time.Duration, n int) (wait time.Duration) {
	if u.carried != nil && kind < carriedKinds {
		return u.carried.take(kind, l, now, n)
	}
	return u.states[kind].Take(l, now, n)
}

// mustNotOvertake reports whether a publish follows one to its room that was refused.
func (u *rateUsage) mustNotOvertake(r *protocol.Request) bool {
	_, refused := u.refusedRooms[r.Room]
	return r.Follows && (refused || u.tooManyRefused)
}

// noteOutcome records whether the last publish to a room was refused.
func (u *rateUsage) noteOutcome(room message.Room, refused bool) {
	switch {
	case !refused:
		delete(u.refusedRooms, room)
	case len(u.refusedRooms) >= maxRefusedRooms:
		u.tooManyRefused = true
	default:
		if u.refusedRooms == nil {
			u.refusedRooms = map[message.Room]struct{}{}
		}
		u.refusedRooms[room] = struct{}{}
	}
}

// checkRates counts a frame against the limits of its connection and its user, or
// returns the error rate_limited. Too many refusals close the connection: see
// ignoresRefusals. The report of a move is free: it has no answer, so a client can't
// know when it was counted.
func (sock *socket) checkRates(r *protocol.Request, size int) error {
	u := &sock.usage
	if r.Type == protocol.TypeMoved && !sock.moveReported {
		return nil
	}
	if r.Type == protocol.TypeJoin && u.freeJoins > 0 {
		u.freeJoins--
		return nil
	}
	now := sock.server.cfg.now()
	overtakes := u.mustNotOvertake(r)
	limitName, wait := "", refusedAgainAfter
	if !overtakes {
		limitName, wait = sock.takeRates(r, size, now)
	}
	if r.Type == protocol.TypePublish {
		u.noteOutcome(r.Room, wait > 0)
	}
	if wait == 0 {
		return nil
	}
	if now-u.lastRefused > refusalResetPause {
		u.refusedInRow = 0
	}
	u.refusedInRow, u.lastRefused = u.refusedInRow+1, now
	if overtakes {
		return rateLimited("an earlier publish to this room was refused; send that one first", wait)
	}
	return rateLimited("too many "+limitName+" a second; send it again after retry_after_ms", wait)
}

// frameUnit is how many bytes of a frame count as one frame more.
const frameUnit = 16 << 10

// FrameLimit limits the frames of a user, or of the anonymous users of an address, on this
// node, for the most connections that one may have, 0 for any number. Accepted publishes and
// signals do not count: they have limits over all nodes. Beyond it frames are read later and
// not refused, so that a thousand clients behind one address can resume ten rooms each.
func FrameLimit(connections, maxConnections int) ratelimit.Limit {
	if connections <= 0 {
		connections = maxConnections
	}
	perSecond := max(200, min(connections, maxConnections)*2/5)
	return ratelimit.Limit{PerSecond: perSecond, Burst: 25 * perSecond}
}

const (
	// pacedAtOnce is how many frames of a connection are waited for at once: to wait after
	// each costs more than to handle it.
	pacedAtOnce = 16
	// maxPace bounds the wait for them, since the end of the connection does not end it.
	maxPace = 5 * time.Second
)

// pace waits until the reader may send so many frames more, on all its connections together.
// It belongs to the connection's reader, which reads nothing meanwhile.
func (sock *socket) pace(frames int) {
	if sock.reader == "" {
		return
	}
	sock.unpaced += frames
	if sock.unpaced < pacedAtOnce {
		return
	}
	frames, sock.unpaced = sock.unpaced, 0
	if wait := sock.countFrames(frames); wait > 0 {
		time.Sleep(min(wait, maxPace))
	}
}

// countFrames counts frames of the reader in any case, and returns how long to wait for them.
func (sock *socket) countFrames(n int) (wait time.Duration) {
	if sock.reader == "" {
		return 0
	}
	return sock.server.framesOf(sock.identity.User).Reserve(sock.reader, sock.server.cfg.now(), n)
}

// framesOf returns the limits of frames of users, or those of addresses for anonymous ones.
func (s *Server) framesOf(user string) *ratelimit.Keyed {
	if user == "" {
		return s.addressFrames
	}
	return s.userFrames
}

// awaitFrames waits, before a session is resumed whose rooms the service joins, until its
// reader may send a frame. It returns an error if that would take longer than maxPace, or the
// client goes.
func (s *Server) awaitFrames(ctx context.Context, user string, network netip.Prefix) error {
	reader, frames := readerOf(user, network), s.framesOf(user)
	if reader == "" {
		return nil
	}
	wait := frames.Used(reader).Wait(frames.Limit(), s.cfg.now())
	if wait == 0 {
		return nil
	}
	err := rateLimited("this user or address resumes too many rooms", wait)
	if wait > maxPace {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return err
	}
}

// takeRates counts a frame, or returns the name of a limit that does not allow it and
// how long to wait.
func (sock *socket) takeRates(r *protocol.Request, size int, now time.Duration) (limitName string, wait time.Duration) {
	s := sock.server
	if wait = sock.usage.take(rateBytes, s.frameLimits[rateBytes], now, size); wait > 0 {
		return "bytes", wait
	}
	kind := rateKind(r.Type)
	if wait = sock.usage.take(kind, s.frameLimits[kind], now, 1); wait > 0 {
		return [rateKinds]string{"publishes", "bytes", "reads", "frames", "auth frames"}[kind], wait
	}
	if kind == ratePublish && sock.identity.User != "" && s.cfg.UserLimits != nil {
		return "publishes or bytes of this user", s.cfg.UserLimits.AllowPublish(sock.identity.User, size)
	}
	if kind == rateHistory && s.cfg.UserLimits != nil {
		return "reads, or bytes of reads, of this user or address", s.cfg.UserLimits.AllowRead(sock.reader)
	}
	return "", 0
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
