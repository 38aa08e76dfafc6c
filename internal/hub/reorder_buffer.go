package hub

import "switchyard/internal/message"

// A reorderBuffer keeps entries that came before their turn, at most one a seq. It may
// have entries of several epochs until it is pruned: before a topic is open it
// can't tell which of them is its own. The zero value is empty. The topic keeps
// its books.
type reorderBuffer struct {
	frames map[message.Seq]roomFrame
	bytes  int
}

// put keeps an entry, unless the hold has so many frames, or would have more
// bytes than size.
func (b *reorderBuffer) put(e *roomFrame, maxFrames, maxBytes int) bool {
	if _, exists := b.frames[e.seq]; exists {
		return true // or it is another epoch's: then the log is asked anyway
	}
	// One entry always has a place, however large.
	if len(b.frames) >= maxFrames || b.bytes > 0 && b.bytes+len(e.frame) > maxBytes {
		return false
	}
	if b.frames == nil {
		b.frames = make(map[message.Seq]roomFrame)
	}
	b.frames[e.seq] = *e
	b.bytes += len(e.frame)
	return true
}

// len is how many are held.
func (b *reorderBuffer) len() int { return len(b.frames) }

// pop removes and returns the entry of a seq, if it is held in that epoch.
func (b *reorderBuffer) pop(seq message.Seq, epoch message.Epoch) (roomFrame, bool) {
	e, ok := b.frames[seq]
	if !ok || e.epoch != epoch {
		return roomFrame{}, false
	}
	b.drop(seq)
	return e, true
}

// drop removes the entry of a seq, which is held.
func (b *reorderBuffer) drop(seq message.Seq) {
	b.bytes -= len(b.frames[seq].frame)
	delete(b.frames, seq)
}

// prune drops what is not after a position of an epoch: it was delivered, or
// never will be.
func (b *reorderBuffer) prune(last message.Seq, epoch message.Epoch) {
	for seq, e := range b.frames {
		if seq <= last || e.epoch != epoch {
			b.drop(seq)
		}
	}
}
