package wheel

import (
	"testing"

	"pgregory.net/rapid"
)

// Slots are compared with a set: each member is visited once, whichever were added and
// removed before, and members that come one after the other are in different slots.
func TestEachMemberHasOnePlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Slots[*member]
		present := map[*member]bool{}
		var order []*member
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if n := len(order); n > 0 && rapid.IntRange(0, 2).Draw(t, "what") == 0 {
				i := rapid.IntRange(0, n-1).Draw(t, "member")
				s.Remove(order[i])
				delete(present, order[i])
				order = append(order[:i], order[i+1:]...)
				continue
			}
			m := &member{}
			s.Add(m)
			present[m] = true
			order = append(order, m)
		}
		visits := map[*member]int{}
		s.Each(func(m *member) { visits[m]++ })
		for tick := range int64(SlotCount) {
			s.EachAt(7*SlotCount+tick, func(m *member) { visits[m]++ })
		}
		for m, n := range visits {
			if n != 2 || !present[m] {
				t.Fatalf("visited %d times, present: %v; want twice", n, present[m])
			}
		}
		if len(visits) != len(present) {
			t.Fatalf("%d of %d members were visited", len(visits), len(present))
		}
	})
}

func TestMembersAreSpreadEvenly(t *testing.T) {
	var s Slots[*member]
	for range 3 * SlotCount {
		s.Add(&member{})
	}
	for tick := range int64(SlotCount) {
		n := 0
		if s.EachAt(tick, func(*member) { n++ }); n != 3 {
			t.Errorf("slot %d has %d members, want 3", tick, n)
		}
	}
}
