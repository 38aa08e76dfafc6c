package hub

import "switchyard/internal/message"

// A reorderBuffer keeps frames that arrived before an earlier frame did, at
// most one for each seq. Until the topic is open, frames of several epochs may
// be in it, because the topic does not know yet which epoch is its own. The
// zero value is empty. The topic's lock guards it, and the topic counts its
// bytes towards the budget.
type reorderBuffer struct {
	frames map[message.Seq]roomFrame
	bytes  int
}

// put keeps a frame, unless the buffer has maxFrames, or would have more than
// maxBytes. It accepts a frame of any size if the buffer is empty.
func (b *reorderBuffer) put(f *roomFrame, maxFrames, maxBytes int) bool {
	if _, exists := b.frames[f.seq]; exists {
		return true // if it is of another epoch, the topic reads the log anyway
	}
	if len(b.frames) >= maxFrames || b.bytes > 0 && b.bytes+len(f.frame) > maxBytes {
		return false
	}
	if b.frames == nil {
		b.frames = make(map[message.Seq]roomFrame)
	}
	b.frames[f.seq] = *f
	b.bytes += len(f.frame)
	return true
}

// len returns the number of frames.
func (b *reorderBuffer) len() int { return len(b.frames) }

// pop removes and returns the frame of a seq, if the buffer has it in that
// epoch.
func (b *reorderBuffer) pop(seq message.Seq, epoch message.Epoch) (roomFrame, bool) {
	f, ok := b.frames[seq]
	if !ok || f.epoch != epoch {
		return roomFrame{}, false
	}
	b.drop(seq)
	return f, true
}

// drop removes the frame of a seq, which exists.
func (b *reorderBuffer) drop(seq message.Seq) {
	b.bytes -= len(b.frames[seq].frame)
	delete(b.frames, seq)
}

// prune removes the frames that do not follow a position: they were delivered,
// or never will be.
func (b *reorderBuffer) prune(last message.Seq, epoch message.Epoch) {
	for seq, f := range b.frames {
		if seq <= last || f.epoch != epoch {
			b.drop(seq)
		}
	}
}
