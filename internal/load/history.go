// Package load publishes and subscribes in masses, keeps a history of what
// publishers were told and what subscribers got, and judges it: Check names
// every message that was lost, doubled, reordered or never published. It stands
// behind `switchyard verify`, `switchyard load` and the tests with faults.
package load

import (
	"iter"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

// DefaultMaxEvents bounds a history: about a gigabyte of memory.
const DefaultMaxEvents = 10_000_000

// chunkSize is how many records are allocated at once.
const chunkSize = 8192

// A packedEvent is an event in 56 bytes: names are numbers in History.names. Who is
// the publisher or the subscriber, whichever the kind has.
type packedEvent struct {
	at                time.Duration
	seq               message.Seq
	hashOrTo          uint64 // hash or to
	room, actor, user uint32
	id, epoch, reason uint32
	kind              kind
	duplicate         bool
}

// A History is what publishers were told and what subscribers got, in the
// order in which it was told here. It is safe for concurrent use.
type History struct {
	began time.Time
	limit int

	mu          sync.Mutex // Protects following.
	nameIDs     map[string]uint32
	names       []string
	chunks      [][]packedEvent
	counts      [kindCount]int
	total       int
	dropped     int
	phaseStarts []time.Duration           // where phases begin, after the first
	heads       map[message.Room]position // the furthest known, of the newest epoch
	open        map[*Subscription]bool
}

// A position is a place in a room's log.
type position struct {
	epoch message.Epoch
	seq   message.Seq
}

// NewHistory returns an empty history that takes DefaultMaxEvents.
func NewHistory() *History { return newHistory(DefaultMaxEvents) }

func newHistory(limit int) *History {
	return &History{
		began: time.Now(), limit: limit,
		nameIDs: map[string]uint32{"": 0}, names: []string{""},
		heads: map[message.Room]position{}, open: map[*Subscription]bool{},
	}
}

// record adds an event that happens now.
func (h *History) record(e event) {
	e.At = time.Since(h.began)
	h.add(e)
}

// BeginPhase begins another phase: pauses are told of each, so that what something
// cost can be held against the time before it.
func (h *History) BeginPhase() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.phaseStarts = append(h.phaseStarts, time.Since(h.began))
}

// phases are the marks so far.
func (h *History) phases() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.phaseStarts)
}

// add adds an event, or counts it as dropped when the history is full.
func (h *History) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[e.Kind]++
	if h.total == h.limit {
		h.dropped++ // and the verdict will be incomplete
		return
	}
	r := packedEvent{
		at: e.At, seq: e.Seq, hashOrTo: uint64(e.Hash), kind: e.Kind, duplicate: e.Duplicate,
		room: h.intern(string(e.Room)), actor: h.intern(e.Sub), user: h.intern(e.User),
		id: h.intern(e.ID), epoch: h.intern(string(e.Epoch)), reason: h.intern(e.Reason),
	}
	h.updateHead(e)
	switch e.Kind {
	case published:
		r.actor = h.intern(e.Publisher)
	case gapDeclared, skipped, repeated:
		r.hashOrTo = uint64(e.To)
	}
	if h.total%chunkSize == 0 {
		h.chunks = append(h.chunks, make([]packedEvent, 0, chunkSize))
	}
	last := len(h.chunks) - 1
	h.chunks[last] = append(h.chunks[last], r)
	h.total++
}

// intern returns the number of a name; the caller holds mu.
func (h *History) intern(name string) uint32 {
	n, ok := h.nameIDs[name]
	if !ok {
		n = uint32(len(h.names))
		h.nameIDs[name] = n
		h.names = append(h.names, name)
	}
	return n
}

// updateHead keeps the furthest position of each room; the caller holds mu and has
// numbered the epoch. One that was met later is the newer one.
func (h *History) updateHead(e event) {
	if e.Kind != acked && e.Kind != delivered {
		return
	}
	head := h.heads[e.Room]
	if e.Epoch == head.epoch && e.Seq <= head.seq || h.intern(string(e.Epoch)) < h.intern(string(head.epoch)) {
		return // or told late
	}
	h.heads[e.Room] = position{e.Epoch, e.Seq}
}

// all returns the events in the order told, unpacked one by one: the whole list
// of them would be three times as large. What is told meanwhile may be
// among them or not.
func (h *History) all() iter.Seq[event] {
	return func(yield func(event) bool) {
		// Records once written do not change; the lists of them grow.
		h.mu.Lock()
		chunks, names, left := slices.Clone(h.chunks), h.names, h.total
		h.mu.Unlock()
		for _, chunk := range chunks {
			for _, r := range chunk[:min(left, chunkSize)] {
				if !yield(r.event(names)) {
					return
				}
			}
			left -= chunkSize
		}
	}
}

func (r packedEvent) event(names []string) event {
	e := event{
		At: r.at, Kind: r.kind, Room: message.Room(names[r.room]), User: names[r.user], ID: names[r.id],
		Epoch: message.Epoch(names[r.epoch]), Seq: r.seq, Reason: names[r.reason], Duplicate: r.duplicate,
	}
	switch r.kind {
	case published:
		e.Publisher, e.Hash = names[r.actor], hash(r.hashOrTo)
	case acked, refused, unknown:
		e.Hash = hash(r.hashOrTo)
	case gapDeclared, skipped, repeated:
		e.Sub, e.To = names[r.actor], message.Seq(r.hashOrTo)
	default:
		e.Sub, e.Hash = names[r.actor], hash(r.hashOrTo)
	}
	return e
}

// Counts are how much a history tells so far.
type Counts struct {
	Published, Acked, Refused, Unknown int
	Delivered, Gaps                    int
	// Dropped events found the history full: it can't be judged.
	Dropped int
}

// Counts returns how much was told so far.
func (h *History) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Counts{
		Published: h.counts[published], Acked: h.counts[acked],
		Refused: h.counts[refused], Unknown: h.counts[unknown],
		Delivered: h.counts[delivered], Gaps: h.counts[gapDeclared], Dropped: h.dropped,
	}
}

// hasCapacityFor says whether publishes, acks and deliveries may come to so many in
// the end, beside all other events so far.
func (h *History) hasCapacityFor(expected int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	others := h.total - h.counts[published] - h.counts[acked] - h.counts[delivered]
	return others+expected <= h.limit
}
