package store

import (
	"sync"
	"time"
)

// A pruneClock says what is old enough to be removed. Rows have times of the
// database's clock, which may be set forward: then all of them would be old at
// once. So a pruneClock holds the database's clock against this process' own
// monotonic one, and nothing that was stored while it runs is old before it has
// been stored for that long. It trusts the clock that it finds at the start. It is
// safe for concurrent use, and its lock is a leaf.
type pruneClock struct {
	mu      sync.Mutex
	started time.Time     // read for its monotonic clock only
	window  time.Duration // the longest time that anything is kept
	// origins has what the database's clock showed at started, as it was at each
	// observation. Times ascend: an origin is forgotten when a later one is
	// earlier, since that is the safer one for older rows, too.
	origins []clockOrigin
}

type clockOrigin struct {
	at    time.Time
	until time.Duration // since started: the first observation of the next origin
}

// originStep is how far the database's clock may run ahead of the process' own
// before that counts as another origin. It bounds the memory that drift takes.
const originStep = time.Second

func newPruneClock(window time.Duration) *pruneClock {
	return &pruneClock{started: time.Now(), window: window}
}

// observe records what the database's clock showed a moment ago.
func (c *pruneClock) observe(clock time.Time) { c.observeAt(clock, time.Since(c.started)) }

func (c *pruneClock) observeAt(clock time.Time, elapsed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := clock.Round(0).Add(-elapsed)
	n := len(c.origins)
	for n > 0 && !c.origins[n-1].at.Before(at) {
		n--
	}
	forgotten := n < len(c.origins)
	c.origins = c.origins[:n]
	if n > 0 {
		last := &c.origins[n-1]
		same := at.Sub(last.at) < originStep
		if same || !forgotten { // otherwise the next observation was that of the forgotten origin
			last.until = elapsed
		}
		if same {
			return
		}
	}
	c.origins = append(c.origins, clockOrigin{at: at, until: elapsed})
	for len(c.origins) > 1 && c.origins[0].until < elapsed-c.window {
		c.origins = c.origins[1:]
	}
}

// cutoff returns the time of the database's clock before which everything has been
// stored for longer than kept. It needs one observation.
func (c *pruneClock) cutoff(kept time.Duration) time.Time {
	return c.cutoffAt(kept, time.Since(c.started))
}

func (c *pruneClock) cutoffAt(kept, elapsed time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.origins[:len(c.origins)-1] {
		if o.until >= elapsed-kept {
			return o.at.Add(elapsed - kept)
		}
	}
	return c.origins[len(c.origins)-1].at.Add(elapsed - kept)
}
