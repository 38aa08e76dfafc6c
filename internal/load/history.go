// Package load runs many publishers and subscribers, records a history of all
// outcomes and deliveries, and checks it: Check names every message that was
// lost, duplicated, reordered or never published. `switchyard verify`,
// `switchyard load` and the tests with faults use it.
package load

import (
	"iter"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

// DefaultMaxEvents bounds a history. So many events take about a gigabyte of
// memory.
const DefaultMaxEvents = 10_000_000

// chunkSize is the number of events that are allocated at once.
const chunkSize = 8192

// A packedEvent is an event in 56 bytes. Texts are indexes of History.names.
type packedEvent struct {
	at                time.Duration
	seq               message.Seq
	hashOrTo          uint64 // Hash or To, whichever the kind has
	room, actor, user uint32 // actor is Publisher or Sub, whichever the kind has
	id, epoch, reason uint32
	kind              kind
	duplicate         bool
}

// A History is a list of events: the publishes and their outcomes, and what
// subscribers got, in the order in which they were recorded. It is safe for
// concurrent use.
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
	phaseStarts []time.Duration           // of all phases but the first
	heads       map[message.Room]position // the highest known position, in the newest epoch
	open        map[*Subscription]bool    // subscriptions that have neither left nor ended
}

// A position is an epoch and a seq of a room.
type position struct {
	epoch message.Epoch
	seq   message.Seq
}

// NewHistory returns an empty history for at most DefaultMaxEvents events.
func NewHistory() *History { return newHistory(DefaultMaxEvents) }

func newHistory(limit int) *History {
	return &History{
		began: time.Now(), limit: limit,
		nameIDs: map[string]uint32{"": 0}, names: []string{""},
		heads: map[message.Room]position{}, open: map[*Subscription]bool{},
	}
}

// record adds an event with the present time.
func (h *History) record(e event) {
	e.At = time.Since(h.began)
	h.add(e)
}

// BeginPhase begins another phase. The report has the pauses of each phase, so
// that those during a deploy, for instance, can be compared with those before it.
func (h *History) BeginPhase() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.phaseStarts = append(h.phaseStarts, time.Since(h.began))
}

// phases returns the starts of all phases but the first.
func (h *History) phases() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.phaseStarts)
}

// add adds an event, or counts it as dropped if the history is full.
func (h *History) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[e.Kind]++
	if h.total == h.limit {
		h.dropped++ // so the verdict will be incomplete
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

// intern returns the index of a name. The caller holds mu.
func (h *History) intern(name string) uint32 {
	n, ok := h.nameIDs[name]
	if !ok {
		n = uint32(len(h.names))
		h.nameIDs[name] = n
		h.names = append(h.names, name)
	}
	return n
}

// updateHead keeps the highest position of each room. Of two epochs it takes the
// one that appeared later as the newer one. The caller holds mu, and has interned
// the epoch.
func (h *History) updateHead(e event) {
	if e.Kind != acked && e.Kind != delivered {
		return
	}
	head := h.heads[e.Room]
	if e.Epoch == head.epoch && e.Seq <= head.seq || h.intern(string(e.Epoch)) < h.intern(string(head.epoch)) {
		return // below the head, or recorded late
	}
	h.heads[e.Room] = position{e.Epoch, e.Seq}
}

// all returns the events in order. It unpacks one at a time, because unpacked
// they are three times as large. Events that are recorded meanwhile may be among
// them or not.
func (h *History) all() iter.Seq[event] {
	return func(yield func(event) bool) {
		// An event never changes once it is added; only the slices grow.
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

// event unpacks an event.
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

// Counts are the numbers of recorded events of some kinds.
type Counts struct {
	Published, Acked, Refused, Unknown int
	Delivered, Gaps                    int
	// Dropped counts events for which the history had no room. With any, a check
	// is incomplete.
	Dropped int
}

// Counts returns how many events were recorded so far.
func (h *History) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Counts{
		Published: h.counts[published], Acked: h.counts[acked],
		Refused: h.counts[refused], Unknown: h.counts[unknown],
		Delivered: h.counts[delivered], Gaps: h.counts[gapDeclared], Dropped: h.dropped,
	}
}

// hasCapacityFor reports whether the history can hold that many publishes, acks
// and deliveries in all, beside the other events that it has so far.
func (h *History) hasCapacityFor(expected int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	others := h.total - h.counts[published] - h.counts[acked] - h.counts[delivered]
	return others+expected <= h.limit
}
