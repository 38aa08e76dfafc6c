package drain

import (
	"sync/atomic"
	"time"
)

// maxSkippedWaves is how many waves of a drain skip a client whose session is not saved,
// so that a drain does not wait long for a Redis that is down.
const maxSkippedWaves = 2

// A MoveRequest is whether a client was asked to move, and when. Only the drain
// changes it. The zero value means that it was not asked. It is safe for concurrent use.
type MoveRequest struct {
	madeAt  atomic.Int64 // Unix ms; 0: not asked
	skipped atomic.Int32 // waves of the drain that skipped the client
}

// IsMade reports whether the client was asked to move.
func (r *MoveRequest) IsMade() bool { return r.madeAt.Load() != 0 }

// record records that the client is asked now.
func (r *MoveRequest) record(now time.Time) { r.madeAt.Store(now.UnixMilli()) }

// skip counts a wave that may skip the client, and reports whether it does.
func (r *MoveRequest) skip() bool { return r.skipped.Add(1) <= maxSkippedWaves }

// withdraw records that the client needs not move any more.
func (r *MoveRequest) withdraw() {
	r.madeAt.Store(0)
	r.skipped.Store(0)
}

// age returns how long ago the client was asked.
func (r *MoveRequest) age(now time.Time) time.Duration {
	return now.Sub(time.UnixMilli(r.madeAt.Load()))
}
