package wheel

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A member is one of a test.
type member struct {
	Deadline
	Place
}

// The wheel is compared with a plain list. It returns exactly the members whose
// deadline has passed, whatever was set, set again and removed before, and however
// many ticks the wheel is behind.
func TestEachDeadlineIsOnTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// The start is an hour ahead, so that the clock that set reads is behind
		// all that happens.
		e := NewDeadlines[*member](time.Now().Add(time.Hour))
		at := func(tick int64) time.Time { return e.start.Add(time.Duration(tick) * Tick) }
		e.tick = int64(rapid.IntRange(0, 3*deadlineSlots).Draw(t, "begin"))
		members := make([]*member, 20)
		ends := map[*member]int64{}
		for i := range members {
			members[i] = &member{}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			m := members[rapid.IntRange(0, len(members)-1).Draw(t, "member")]
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				e.Remove(m)
				delete(ends, m)
			case 1:
				e.Set(m, time.Time{})
				delete(ends, m)
			case 2, 3:
				ticks := rapid.IntRange(-5, 3*deadlineSlots).Draw(t, "ticks")
				e.Set(m, at(e.tick+int64(ticks)).Add(Tick/2))
				ends[m] = e.tick + int64(max(ticks, 0)) + 1
			case 4:
				behind := int64(rapid.SampledFrom([]int{1, 1, 3, deadlineSlots / 5, 3 * deadlineSlots}).Draw(t, "behind"))
				for range rapid.SampledFrom([]int{1, 2, 10, 100}).Draw(t, "turns") {
					before := e.tick
					for _, m := range e.Advance(at(before + behind)) {
						if ends[m] <= before || ends[m] > e.tick {
							t.Fatalf("a member ended between ticks %d and %d, want %d", before, e.tick, ends[m])
						}
						delete(ends, m)
					}
					for _, at := range ends {
						if at <= e.tick {
							t.Fatalf("a member did not end by tick %d, want %d", e.tick, at)
						}
					}
				}
			}
		}
		left := 0
		for _, slot := range e.slots {
			left += len(slot)
		}
		if left != len(ends) {
			t.Fatalf("%d members are on the wheel, want %d", left, len(ends))
		}
	})
}
