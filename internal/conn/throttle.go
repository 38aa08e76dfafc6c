package conn

import (
	"time"

	"switchyard/internal/ratelimit"
)

// A throttle limits the reading of a connection. It counts all bytes and all frames,
// including control frames, empty fragments and refused frames. It sends nothing:
// the client's own socket fills up. A throttle belongs to the reader.
type throttle struct {
	began         time.Time
	frames, bytes ratelimit.Limit

	frameState, byteState, pingState ratelimit.State
}

// pingLimit limits the answered pings of a client, since each costs a write. RFC
// 6455 §5.5.2 requires an answer to each; over the limit it comes later.
var pingLimit = ratelimit.Limit{PerSecond: 10, Burst: 100}

// pause waits until what was just read is within the limits. That takes
// milliseconds, since one read is small.
func (t *throttle) pause(frames, bytes int) {
	t.wait(&t.frameState, t.frames, frames)
	t.wait(&t.byteState, t.bytes, bytes)
}

// pausePing waits until one more ping may be answered.
func (t *throttle) pausePing() { t.wait(&t.pingState, pingLimit, 1) }

func (t *throttle) wait(state *ratelimit.State, limit ratelimit.Limit, n int) {
	for {
		wait := state.Take(limit, time.Since(t.began), n)
		if wait == 0 {
			return
		}
		time.Sleep(min(wait, time.Second)) // the reader's goroutine: nobody else waits for it
	}
}
