package hub

import (
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A ring holds the newest frames of a topic, without holes; the last frame is
// the one of topic.last. A member that joins from a position in it needs no
// read of the log. It is a sliding window of a slice and not a circle, so that
// its tail is contiguous and needs no copy. The topic's lock guards it.
type ring struct {
	frames []protocol.Frame // the oldest is at start
	start  int
	bytes  int
}

// len returns the number of frames.
func (r *ring) len() int { return len(r.frames) - r.start }

// push adds the newest frame and drops the oldest beyond maxFrames and
// maxBytes. A frame larger than maxBytes leaves the ring empty.
func (r *ring) push(f protocol.Frame, maxFrames, maxBytes int) {
	r.frames = append(r.frames, f)
	r.bytes += len(f)
	for r.len() > maxFrames || r.bytes > maxBytes {
		r.bytes -= len(r.frames[r.start])
		r.frames[r.start] = nil // for the garbage collector
		r.start++
	}
	if r.start > maxFrames { // move the frames down once in maxFrames pushes
		n := copy(r.frames, r.frames[r.start:])
		clear(r.frames[n:])
		r.frames, r.start = r.frames[:n], 0
	}
}

// covers reports whether the ring has all messages after a seq up to last, the
// seq of the newest frame.
func (r *ring) covers(after, last message.Seq) bool {
	return after <= last && last-after <= message.Seq(r.len())
}

// tail returns the newest n frames. They are valid while the topic's lock is
// held.
func (r *ring) tail(n int) []protocol.Frame { return r.frames[len(r.frames)-n:] }

// concatFrames joins frames into one, so that they take one write. Frames must
// not be empty; a single frame is returned without a copy.
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
