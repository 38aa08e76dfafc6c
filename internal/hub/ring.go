package hub

import (
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

const (
	// ringBudget bounds all rings of a node together. Over it each keeps
	// ringLeast only: more resumes then ask the database.
	ringBudget = 256 << 20
	ringLeast  = 8 << 10
)

// A ring is the last encoded frames of a topic, without holes.
type ring struct {
	frames []protocol.Frame // oldest at start
	start  int
	bytes  int
}

func (r *ring) len() int { return len(r.frames) - r.start }

// push adds the newest frame and lets go of the oldest over the bounds.
func (r *ring) push(f protocol.Frame, most, limit int) {
	r.frames = append(r.frames, f)
	r.bytes += len(f)
	for r.len() > most || r.bytes > limit {
		r.bytes -= len(r.frames[r.start])
		r.frames[r.start] = nil
		r.start++
	}
	if r.start > most { // move down once in so many pushes
		n := copy(r.frames, r.frames[r.start:])
		clear(r.frames[n:])
		r.frames, r.start = r.frames[:n], 0
	}
}

// covers says whether everything after a position, up to last, the newest
// frame's, is here.
func (r *ring) covers(after, last message.Seq) bool {
	return after <= last && last-after <= message.Seq(r.len())
}

// tail returns the newest n frames as one.
func (r *ring) tail(n int) protocol.Frame {
	return join(r.frames[len(r.frames)-n:])
}

// join makes one frame of several; of one it is that one.
func join(frames []protocol.Frame) protocol.Frame {
	if len(frames) == 1 {
		return frames[0]
	}
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	all := make(protocol.Frame, 0, size)
	for _, f := range frames {
		all = append(all, f...)
	}
	return all
}
