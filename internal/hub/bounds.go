package hub

import (
	"math"
	"sync/atomic"
)

// bounds limit what a topic keeps and reads, in frames and bytes. Beyond them
// it relies on the log. They are fields and not constants so that tests can
// make every limit reachable with a few messages.
type bounds struct {
	inboxBytes    int // received, not yet put in order
	reorderFrames int // received before an earlier message
	reorderBytes  int
	ringFrames    int // how much a client may have missed and still resume from memory
	ringBytes     int
	pageFrames    int // one read of the log
	pageBytes     int

	// Budgets of all topics on a node together, in bytes. While one is
	// exceeded, each topic may keep only minBytes of that kind, and reads the
	// log more often.
	undeliveredBudget int64 // inboxes and reorder buffers
	ringBudget        int64
	pageBudget        int64 // pages on their way to members, or kept for the next
	minBytes          int

	roomBytes int64 // of all rooms and memberships; beyond it joins are refused
}

// defaultBounds returns the bounds of a node with this much memory, 0 for no bound. A room
// of small messages fills its ring with about 60 KiB, so 3,000 such rooms fit into three
// quarters of the budget of rings of a node with 2 GiB.
func defaultBounds(memory int64) bounds {
	if memory <= 0 {
		memory = math.MaxInt64
	}
	share := func(most, part int64) int64 { return min(most, memory/part) }
	return bounds{
		inboxBytes:        512 << 10,
		reorderFrames:     512,
		reorderBytes:      512 << 10,
		ringFrames:        256,
		ringBytes:         256 << 10,
		pageFrames:        200,
		pageBytes:         256 << 10,
		undeliveredBudget: share(64<<20, 32), // inboxes and reorder buffers
		ringBudget:        share(256<<20, 8),
		pageBudget:        share(64<<20, 32), // pages that are being sent or cached
		minBytes:          8 << 10,
		roomBytes:         share(math.MaxInt64, 8),
	}
}

// MemoryShare returns how much of a node's memory the hub uses at most, in bytes.
func MemoryShare(memory int64) int64 {
	b := defaultBounds(memory)
	return b.undeliveredBudget + b.ringBudget + b.pageBudget + b.roomBytes
}

// memoryUsage counts the bytes that the budgets limit. Code that keeps a frame
// adds its bytes, and subtracts them when it drops the frame. A frame that two
// buffers keep counts twice: that overestimates, which is safe.
type memoryUsage struct {
	undelivered atomic.Int64
	rings       atomic.Int64
	pages       atomic.Int64
}

// inboxLimit returns how many bytes the inbox of one topic may keep now.
func (h *Hub) inboxLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.undelivered, b.undeliveredBudget, b.inboxBytes, b.minBytes)
}

// reorderLimit returns the same for a reorder buffer.
func (h *Hub) reorderLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.undelivered, b.undeliveredBudget, b.reorderBytes, b.minBytes)
}

// ringLimit returns the same for a ring, from three quarters of the budget on, and 0 over
// all of it: there are more rooms than the least of each has place for.
func (h *Hub) ringLimit() int {
	b := &h.cfg.bounds
	least := b.minBytes
	if h.memory.rings.Load() > b.ringBudget {
		least = 0
	}
	return budgetedLimit(&h.memory.rings, b.ringBudget/4*3, b.ringBytes, least)
}

// pageLimit returns how many bytes of data one shared page may have now.
func (h *Hub) pageLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.pages, b.pageBudget, b.pageBytes, b.minBytes)
}

// repairPageLimit returns how many bytes a repair reads. It ignores the budget:
// a smaller page might not reach the head, and then all members would have to
// catch up.
func (h *Hub) repairPageLimit() int { return h.cfg.bounds.pageBytes }

// budgetedLimit returns normal, or minimum while the budget is exceeded. Frames
// that were kept before stay until they are delivered. So the sum may exceed
// the budget by one normal size for each goroutine that adds.
func budgetedLimit(used *atomic.Int64, budget int64, normal, minimum int) int {
	if used.Load() > budget {
		return min(normal, minimum)
	}
	return normal
}
