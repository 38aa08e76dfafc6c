package hub

import (
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A ring is the last encoded frames of a topic, without holes: the newest is
// that of the topic's last seq. What joins from a position that it covers asks
// the database nothing. It is a slice that moves, not a circle: its tail is one
// piece, and can be handed over without a copy.
type ring struct {
	frames []protocol.Frame // oldest at start
	start  int
	bytes  int
}

// len is how many messages back the ring reaches.
func (r *ring) len() int { return len(r.frames) - r.start }

// push adds the newest frame and lets go of the oldest over the bounds: most
// frames, and limit bytes. A frame larger than that leaves the ring empty.
func (r *ring) push(f protocol.Frame, maxFrames, maxBytes int) {
	r.frames = append(r.frames, f)
	r.bytes += len(f)
	for r.len() > maxFrames || r.bytes > maxBytes {
		r.bytes -= len(r.frames[r.start])
		r.frames[r.start] = nil // for the collector
		r.start++
	}
	if r.start > maxFrames { // move down once in so many pushes
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

// tail returns the newest n frames. They are the ring's until the lock is given
// up.
func (r *ring) tail(n int) []protocol.Frame { return r.frames[len(r.frames)-n:] }

// concatFrames makes one frame of several, so that they take one write; of one it is
// that one, without a copy. There is one at least.
func concatFrames(frames []protocol.Frame) protocol.Frame {
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
