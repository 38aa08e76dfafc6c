package http

import (
	"runtime"
	"time"
)

// A wave is when many clients come at once: a deploy moves them here, or the
// network is back. Each handshake leaves some 10 KiB of net/http's buffers
// behind, which the collector would only come for once as much again is
// allocated: on a node of idle clients, minutes later. The zero value is ready;
// it belongs to the beat.
type wave struct {
	looked time.Time
	seen   int64 // handshakes up to then
	owed   int64 // those since the last collection
}

const (
	waveLook = time.Second
	waveSize = 1000
	waveEbb  = 20 // it is over when less than this part of it comes in a look's time
)

// over says whether a wave has just ended; total are the handshakes so far.
func (w *wave) over(now time.Time, total int64) bool {
	if now.Sub(w.looked) < waveLook {
		return false
	}
	came := total - w.seen
	w.looked, w.seen, w.owed = now, total, w.owed+came
	if w.owed < waveSize || came > w.owed/waveEbb {
		return false
	}
	w.owed = 0
	return true
}

// tidy collects what a wave has left, beside the clients, who are served
// meanwhile. The scavenger gives the memory back bit by bit; debug.FreeOSMemory
// would do so at once, and nobody runs on that processor until it is done.
func tidy() { runtime.GC() }
