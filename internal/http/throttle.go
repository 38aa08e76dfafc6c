package http

import "time"
import "switchyard/internal/ratelimit"

// A throttle limits the reading of a connection to the most that its rates allow. It
// counts all bytes and all frames, including control frames, empty fragments and
// refused frames. It sends nothing: the client's own socket fills up. A client that
// is merely too fast gets rate_limited long before. A throttle belongs to the
// reader. Nil is no throttle.
type throttle struct {
	now           func() time.Duration
	frames, bytes ratelimit.Limit
	pings         ratelimit.Limit

	frameState, byteState, pingState ratelimit.State
}

// pingRate limits the answered pings of a client, since each costs a write. RFC
// 6455 §5.5.2 requires an answer to each; over the limit it comes later.
var pingRate = ratelimit.Limit{PerSecond: 10, Burst: 100}

// newThrottle derives the limits from the rates. They are twice as high, so that
// rate_limited always comes first. If one of the rates is unlimited, frames are,
// too.
func newThrottle(r *Rates, maxRooms int, now func() time.Duration) *throttle {
	t := &throttle{now: now, bytes: ratelimit.PerSecond(2 * r.Bytes), pings: pingRate}
	if r.Publish > 0 && r.Join > 0 && r.History > 0 {
		each := 2 * (r.Publish + r.Join + r.History)
		t.frames = ratelimit.Limit{PerSecond: each, Burst: 2*each + maxRooms}
	}
	return t
}

// pause waits until what was just read is within the limits. That takes
// milliseconds, since one read is small.
func (t *throttle) pause(frames, bytes int) {
	if t == nil {
		return
	}
	t.wait(&t.frameState, t.frames, frames)
	t.wait(&t.byteState, t.bytes, bytes)
}

// pausePing waits until one more ping may be answered.
func (t *throttle) pausePing() {
	if t != nil {
		t.wait(&t.pingState, t.pings, 1)
	}
}

func (t *throttle) wait(state *ratelimit.State, limit ratelimit.Limit, n int) {
	for {
		wait := state.Take(limit, t.now(), n)
		if wait == 0 {
			return
		}
		time.Sleep(min(wait, time.Second)) // the reader's goroutine: nobody else waits for it
	}
}
