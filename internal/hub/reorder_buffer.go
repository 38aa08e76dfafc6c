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
func (h *reorderBuffer) put(e *roomFrame, maxFrames, maxBytes int) bool {
	if _, exists := h.frames[e.seq]; exists {
		return true // or it is another epoch's: then the log is asked anyway
	}
	// One entry always has a place, however large.
	if len(h.frames) >= maxFrames || h.bytes > 0 && h.bytes+len(e.frame) > maxBytes {
		return false
	}
	if h.frames == nil {
		h.frames = make(map[message.Seq]roomFrame)
	}
	h.frames[e.seq] = *e
	h.bytes += len(e.frame)
	return true
}

// len is how many are held.
func (h *reorderBuffer) len() int { return len(h.frames) }

// pop removes and returns the entry of a seq, if it is held in that epoch.
func (h *reorderBuffer) pop(seq message.Seq, epoch message.Epoch) (roomFrame, bool) {
	e, ok := h.frames[seq]
	if !ok || e.epoch != epoch {
		return roomFrame{}, false
	}
	h.drop(seq)
	return e, true
}

// drop removes the entry of a seq, which is held.
func (h *reorderBuffer) drop(seq message.Seq) {
	h.bytes -= len(h.frames[seq].frame)
	delete(h.frames, seq)
}

// prune drops what is not after a position of an epoch: it was delivered, or
// never will be.
func (h *reorderBuffer) prune(last message.Seq, epoch message.Epoch) {
	for seq, e := range h.frames {
		if seq <= last || e.epoch != epoch {
			h.drop(seq)
		}
	}
}
