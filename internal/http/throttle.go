package http

import "time"

// A throttle slows the reading of a connection down to what its rates could
// ever use: frames of all kinds and bytes, control frames, empty fragments and
// what is refused included. It answers nothing; the client's own socket fills
// up. What is merely too fast has been told rate_limited long before. It
// belongs to the reader. Nil is none.
type throttle struct {
	now           func() time.Duration
	frames, bytes rateLimit
	pings         rateLimit

	frameState, byteState, pingState gcraState
}

// pingRate bounds the pings of a client that are answered: each costs a write.
// RFC 6455 §5.5.2 asks for an answer to each, which they get, later.
var pingRate = rateLimit{10, 100}

// newThrottle derives the bounds: twice the rates, so that it is never the
// first to be felt. Where one of the rates is no limit, nor is this.
func newThrottle(r *Rates, maxRooms int, now func() time.Duration) *throttle {
	t := &throttle{now: now, bytes: perSecond(2 * r.Bytes), pings: pingRate}
	if r.Publish > 0 && r.Join > 0 && r.History > 0 {
		each := 2 * (r.Publish + r.Join + r.History)
		t.frames = rateLimit{each, 2*each + maxRooms}
	}
	return t
}

// pause waits until what was just read fits: for some milliseconds, since one
// read brings little.
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

func (t *throttle) wait(y *gcraState, a rateLimit, n int) {
	for {
		wait := y.take(a, t.now(), n)
		if wait == 0 {
			return
		}
		time.Sleep(min(wait, time.Second)) // its own goroutine, and nobody waits for it
	}
}
