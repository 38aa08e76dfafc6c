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

// A record is an event in 56 bytes: names are numbers in History.names. Who is
// the publisher or the subscriber, whichever the kind has.
type record struct {
	at                 time.Duration
	seq                message.Seq
	x                  uint64 // hash or to
	room, who, user    uint32
	id, epoch, reasonN uint32
	kind               kind
	duplicate          bool
}

// A History is what publishers were told and what subscribers got, in the
// order in which it was told here. It is safe for concurrent use.
type History struct {
	began time.Time
	limit int

	mu      sync.Mutex // Protects following.
	numbers map[string]uint32
	names   []string
	chunks  [][]record
	counts  [kinds]int
	total   int
	dropped int
	marks   []time.Duration           // where phases begin, after the first
	heads   map[message.Room]position // the furthest known, of the newest epoch
	open    map[*Subscription]bool
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
		numbers: map[string]uint32{"": 0}, names: []string{""},
		heads: map[message.Room]position{}, open: map[*Subscription]bool{},
	}
}

// tell adds an event that happens now.
func (h *History) tell(e event) {
	e.At = time.Since(h.began)
	h.add(e)
}

// Mark begins another phase: pauses are told of each, so that what something
// cost can be held against the time before it.
func (h *History) Mark() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks = append(h.marks, time.Since(h.began))
}

// phases are the marks so far.
func (h *History) phases() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.marks)
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
	r := record{
		at: e.At, seq: e.Seq, x: uint64(e.Hash), kind: e.Kind, duplicate: e.Duplicate,
		room: h.number(string(e.Room)), who: h.number(e.Sub), user: h.number(e.User),
		id: h.number(e.ID), epoch: h.number(string(e.Epoch)), reasonN: h.number(e.Reason),
	}
	h.note(e)
	switch e.Kind {
	case published:
		r.who = h.number(e.By)
	case declared, skipped, repeated:
		r.x = uint64(e.To)
	}
	if h.total%chunkSize == 0 {
		h.chunks = append(h.chunks, make([]record, 0, chunkSize))
	}
	last := len(h.chunks) - 1
	h.chunks[last] = append(h.chunks[last], r)
	h.total++
}

// number returns the number of a name; the caller holds mu.
func (h *History) number(name string) uint32 {
	n, ok := h.numbers[name]
	if !ok {
		n = uint32(len(h.names))
		h.numbers[name] = n
		h.names = append(h.names, name)
	}
	return n
}

// note keeps the furthest position of each room; the caller holds mu and has
// numbered the epoch. One that was met later is the newer one.
func (h *History) note(e event) {
	if e.Kind != acked && e.Kind != delivered {
		return
	}
	head := h.heads[e.Room]
	if e.Epoch == head.epoch && e.Seq <= head.seq || h.number(string(e.Epoch)) < h.number(string(head.epoch)) {
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

func (r record) event(names []string) event {
	e := event{
		At: r.at, Kind: r.kind, Room: message.Room(names[r.room]), User: names[r.user], ID: names[r.id],
		Epoch: message.Epoch(names[r.epoch]), Seq: r.seq, Reason: names[r.reasonN], Duplicate: r.duplicate,
	}
	switch r.kind {
	case published:
		e.By, e.Hash = names[r.who], hash(r.x)
	case acked, refused, unknown:
		e.Hash = hash(r.x)
	case declared, skipped, repeated:
		e.Sub, e.To = names[r.who], message.Seq(r.x)
	default:
		e.Sub, e.Hash = names[r.who], hash(r.x)
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
		Delivered: h.counts[delivered], Gaps: h.counts[declared], Dropped: h.dropped,
	}
}

// hasRoomFor says whether publishes, acks and deliveries may come to so many in
// the end, beside all other events so far.
func (h *History) hasRoomFor(expected int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	others := h.total - h.counts[published] - h.counts[acked] - h.counts[delivered]
	return others+expected <= h.limit
}
