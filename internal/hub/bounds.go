package hub

import "sync/atomic"

// bounds are what a topic keeps and asks for, in frames and bytes; beyond them
// the log has it. They belong to a hub and not to the package for the tests'
// sake alone: with rings and pages of three messages, a handful reaches every
// edge.
type bounds struct {
	inboxBytes    int // received, not yet put in order
	reorderFrames int // before their turn
	reorderBytes  int
	ringFrames    int // what a client may have missed and still resume from memory
	ringBytes     int
	pageFrames    int // one read of the log
	pageBytes     int

	// What all topics of a node keep together, in bytes. While they are over a
	// budget, each may keep least of that kind: more then asks the database.
	undeliveredBudget int64 // inboxes and holds
	ringBudget        int64
	pageBudget        int64 // pages on their way to members, or kept for the next
	minBytes          int
}

// defaultBounds are those of the service. A room of small messages fills its ring
// with about 60 KiB: 4,000 such rooms are within the rings' budget.
func defaultBounds() bounds {
	return bounds{
		inboxBytes:        512 << 10,
		reorderFrames:     512,
		reorderBytes:      512 << 10,
		ringFrames:        256,
		ringBytes:         256 << 10,
		pageFrames:        200,
		pageBytes:         256 << 10,
		undeliveredBudget: 64 << 20,
		ringBudget:        256 << 20,
		pageBudget:        64 << 20,
		minBytes:          8 << 10,
	}
}

// memoryUsage are the bytes that count towards the budgets. Whoever keeps a frame
// writes it down, and off again when it lets go. A frame that two keep counts
// twice, which errs on the safe side.
type memoryUsage struct {
	undelivered atomic.Int64
	rings       atomic.Int64
	pages       atomic.Int64
}

// inboxLimit is what one topic's inbox may hold now, in bytes.
func (h *Hub) inboxLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.undelivered, b.undeliveredBudget, b.inboxBytes, b.minBytes)
}

// reorderLimit is what its hold may.
func (h *Hub) reorderLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.undelivered, b.undeliveredBudget, b.reorderBytes, b.minBytes)
}

// ringLimit is what its ring may.
func (h *Hub) ringLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.rings, b.ringBudget, b.ringBytes, b.minBytes)
}

// pageLimit is what one shared page may have.
func (h *Hub) pageLimit() int {
	b := &h.cfg.bounds
	return budgetedLimit(&h.memory.pages, b.pageBudget, b.pageBytes, b.minBytes)
}

// repairPageLimit is what a repair reads, whatever is on its way to others: a part of
// it would turn the members into catching-up.
func (h *Hub) repairPageLimit() int { return h.cfg.bounds.pageBytes }

// budgetedLimit is what one may keep now: the usual, or the least where all together
// are over their budget. What was kept before is not taken away; it goes as it
// is delivered, so the sum may pass the budget by one usual size a writer.
func budgetedLimit(used *atomic.Int64, budget int64, normal, minimum int) int {
	if used.Load() > budget {
		return min(normal, minimum)
	}
	return normal
}
