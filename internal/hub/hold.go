package hub

import "switchyard/internal/message"

// A hold keeps entries that came before their turn. The zero value is empty.
type hold struct {
	entries map[message.Seq]entry
	bytes   int
}

func (h *hold) len() int { return len(h.entries) }

// put keeps an entry, unless the hold is full.
func (h *hold) put(e *entry, b *bounds) bool {
	if _, held := h.entries[e.seq]; held {
		return true
	}
	if len(h.entries) >= b.holdFrames || h.bytes > 0 && h.bytes+len(e.frame) > b.holdBytes {
		return false
	}
	if h.entries == nil {
		h.entries = make(map[message.Seq]entry)
	}
	h.entries[e.seq] = *e
	h.bytes += len(e.frame)
	return true
}

// take removes and returns the entry of a seq, if it is held in that epoch.
func (h *hold) take(seq message.Seq, epoch message.Epoch) (entry, bool) {
	e, ok := h.entries[seq]
	if !ok || e.epoch != epoch {
		return entry{}, false
	}
	h.drop(seq)
	return e, true
}

func (h *hold) drop(seq message.Seq) {
	h.bytes -= len(h.entries[seq].frame)
	delete(h.entries, seq)
}

// prune drops what is not after a position of an epoch.
func (h *hold) prune(last message.Seq, epoch message.Epoch) {
	for seq, e := range h.entries {
		if seq <= last || e.epoch != epoch {
			h.drop(seq)
		}
	}
}
