package hub

import "switchyard/internal/message"

// A hold keeps entries that came before their turn, at most one a seq. It may
// have entries of several epochs until it is pruned: before a topic is open it
// can't tell which of them is its own. The zero value is empty. The topic keeps
// its books.
type hold struct {
	entries map[message.Seq]entry
	bytes   int
}

// put keeps an entry, unless the hold has so many frames, or would have more
// bytes than size.
func (h *hold) put(e *entry, frames, size int) bool {
	if _, held := h.entries[e.seq]; held {
		return true // or it is another epoch's: then the log is asked anyway
	}
	// One entry always has a place, however large.
	if len(h.entries) >= frames || h.bytes > 0 && h.bytes+len(e.frame) > size {
		return false
	}
	if h.entries == nil {
		h.entries = make(map[message.Seq]entry)
	}
	h.entries[e.seq] = *e
	h.bytes += len(e.frame)
	return true
}

// len is how many are held.
func (h *hold) len() int { return len(h.entries) }

// take removes and returns the entry of a seq, if it is held in that epoch.
func (h *hold) take(seq message.Seq, epoch message.Epoch) (entry, bool) {
	e, ok := h.entries[seq]
	if !ok || e.epoch != epoch {
		return entry{}, false
	}
	h.drop(seq)
	return e, true
}

// drop removes the entry of a seq, which is held.
func (h *hold) drop(seq message.Seq) {
	h.bytes -= len(h.entries[seq].frame)
	delete(h.entries, seq)
}

// prune drops what is not after a position of an epoch: it was delivered, or
// never will be.
func (h *hold) prune(last message.Seq, epoch message.Epoch) {
	for seq, e := range h.entries {
		if seq <= last || e.epoch != epoch {
			h.drop(seq)
		}
	}
}
