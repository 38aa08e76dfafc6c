package wheel

import "sync"

// SlotCount is the number of slots into which a period is divided.
const SlotCount = 25

// A Place is the position of an entry in Slots. The entry embeds it.
type Place struct {
	slot  int // does not change after Add
	index int // in the slot; guarded by its lock
}

func (p *Place) place() *Place { return p }

// Slots hold members, which embed a Place, in equal parts. They are safe for concurrent
// use. The zero value is ready.
type Slots[M interface{ place() *Place }] struct {
	next  uint // slot of the newest member; guarded by slots[0].mu
	slots [SlotCount]slot[M]
}

type slot[M any] struct {
	mu      sync.Mutex
	members []M
}

// Add adds a member.
func (s *Slots[M]) Add(m M) {
	own := m.place()
	s.slots[0].mu.Lock()
	s.next = (s.next + 1) % SlotCount
	own.slot = int(s.next)
	s.slots[0].mu.Unlock()
	slot := &s.slots[own.slot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	own.index = len(slot.members)
	slot.members = append(slot.members, m)
}

// Remove removes a member that was added.
func (s *Slots[M]) Remove(m M) {
	own := m.place()
	slot := &s.slots[own.slot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	last := len(slot.members) - 1
	slot.members[own.index] = slot.members[last]
	slot.members[own.index].place().index = own.index
	clear(slot.members[last:])
	slot.members = slot.members[:last]
}

// Each calls f for every member, with its slot locked. f must not block.
func (s *Slots[M]) Each(f func(M)) {
	for i := range int64(SlotCount) {
		s.EachAt(i, f)
	}
}

// EachAt is Each for the members whose turn is at a tick.
func (s *Slots[M]) EachAt(tick int64, f func(M)) {
	slot := &s.slots[tick%SlotCount]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	for _, m := range slot.members {
		f(m)
	}
}
