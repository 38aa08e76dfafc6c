package http

import (
	"runtime"
	"time"
)

// A handshakeBurst is when many clients come at once: a deploy moves them here, or the
// network is back. Each handshake leaves some 10 KiB of net/http's buffers
// behind, which the collector would only come for once as much again is
// allocated: on a node of idle clients, minutes later. The zero value is ready;
// it belongs to the beat.
type handshakeBurst struct {
	checkedAt   time.Time
	seenTotal   int64 // handshakes up to then
	uncollected int64 // those since the last collection
}

const (
	burstCheckInterval = time.Second
	minBurst           = 1000
	burstEndDivisor    = 20 // it is over when less than this part of it comes in a look's time
)

// hasEnded says whether a wave has just ended; total are the handshakes so far.
func (w *handshakeBurst) hasEnded(now time.Time, total int64) bool {
	if now.Sub(w.checkedAt) < burstCheckInterval {
		return false
	}
	recent := total - w.seenTotal
	w.checkedAt, w.seenTotal, w.uncollected = now, total, w.uncollected+recent
	if w.uncollected < minBurst || recent > w.uncollected/burstEndDivisor {
		return false
	}
	w.uncollected = 0
	return true
}

// collectGarbage collects what a wave has left, beside the clients, who are served
// meanwhile. The scavenger gives the memory back bit by bit; debug.FreeOSMemory
// would do so at once, and nobody runs on that processor until it is done.
func collectGarbage() { runtime.GC() }
