package hub

import "sync/atomic"

// bounds are what a topic keeps and asks for, in frames and bytes; beyond them
// the log has it. They belong to a hub and not to the package for the tests'
// sake alone: with rings and pages of three messages, a handful reaches every
// edge.
type bounds struct {
	inboxBytes int // received, not yet put in order
	holdFrames int // before their turn
	holdBytes  int
	ringFrames int // what a client may have missed and still resume from memory
	ringBytes  int
	pageFrames int // one read of the log
	pageBytes  int

	// What all topics of a node keep together, in bytes. While they are over a
	// budget, each may keep least of that kind: more then asks the database.
	earlyBudget int64 // inboxes and holds
	ringBudget  int64
	pageBudget  int64 // pages on their way to members, or kept for the next
	least       int
}

// usualBounds are those of the service. A room of small messages fills its ring
// with about 60 KiB: 4,000 such rooms are within the rings' budget.
func usualBounds() bounds {
	return bounds{
		inboxBytes:  512 << 10,
		holdFrames:  512,
		holdBytes:   512 << 10,
		ringFrames:  256,
		ringBytes:   256 << 10,
		pageFrames:  200,
		pageBytes:   256 << 10,
		earlyBudget: 64 << 20,
		ringBudget:  256 << 20,
		pageBudget:  64 << 20,
		least:       8 << 10,
	}
}

// books are the bytes that count towards the budgets. Whoever keeps a frame
// writes it down, and off again when it lets go. A frame that two keep counts
// twice, which errs on the safe side.
type books struct {
	early atomic.Int64
	rings atomic.Int64
	pages atomic.Int64
}

// inboxLimit is what one topic's inbox may hold now, in bytes.
func (h *Hub) inboxLimit() int {
	b := &h.cfg.bounds
	return within(&h.books.early, b.earlyBudget, b.inboxBytes, b.least)
}

// holdLimit is what its hold may.
func (h *Hub) holdLimit() int {
	b := &h.cfg.bounds
	return within(&h.books.early, b.earlyBudget, b.holdBytes, b.least)
}

// ringLimit is what its ring may.
func (h *Hub) ringLimit() int {
	b := &h.cfg.bounds
	return within(&h.books.rings, b.ringBudget, b.ringBytes, b.least)
}

// pageLimit is what one shared page may have.
func (h *Hub) pageLimit() int {
	b := &h.cfg.bounds
	return within(&h.books.pages, b.pageBudget, b.pageBytes, b.least)
}

// wholePage is what a repair reads, whatever is on its way to others: a part of
// it would turn the members into catching-up.
func (h *Hub) wholePage() int { return h.cfg.bounds.pageBytes }

// within is what one may keep now: the usual, or the least where all together
// are over their budget. What was kept before is not taken away; it goes as it
// is delivered, so the sum may pass the budget by one usual size a writer.
func within(used *atomic.Int64, budget int64, usual, least int) int {
	if used.Load() > budget {
		return min(usual, least)
	}
	return usual
}
