package http

import (
	"runtime"
	"time"
)

// A handshakeBurst detects the end of a burst of handshakes, such as a deploy or a
// recovered network causes. Each handshake leaves some 10 KiB of
// net/http's buffers as garbage. The collector would run only after as much was
// allocated again, which takes minutes on a node of idle clients. The zero value is
// ready. It belongs to the heartbeat's goroutine.
type handshakeBurst struct {
	checkedAt   time.Time
	seenTotal   int64 // handshakes until checkedAt
	uncollected int64 // handshakes since the last collection
}

const (
	burstCheckInterval = time.Second
	minBurst           = 1000
	burstEndDivisor    = 20 // the burst is over when less than this part of it came in the last interval
)

// hasEnded reports whether a burst has just ended. total is the number of
// handshakes so far.
func (b *handshakeBurst) hasEnded(now time.Time, total int64) bool {
	if now.Sub(b.checkedAt) < burstCheckInterval {
		return false
	}
	recent := total - b.seenTotal
	b.checkedAt, b.seenTotal, b.uncollected = now, total, b.uncollected+recent
	if b.uncollected < minBurst || recent > b.uncollected/burstEndDivisor {
		return false
	}
	b.uncollected = 0
	return true
}

// collectGarbage frees what a burst has left, while clients are served. The
// scavenger returns the memory bit by bit. debug.FreeOSMemory would return it at
// once, and block a processor until it is done.
func collectGarbage() { runtime.GC() }
