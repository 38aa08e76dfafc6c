package http

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Against a plain list: at each tick exactly those end whose time has come,
// whatever was set, set anew and removed before.
func TestTheWheelEndsEachOneAtItsTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e expiry
		e.tick = int64(rapid.IntRange(0, 3*expirySlots).Draw(t, "begin"))
		sockets := make([]*socket, 20)
		ends := map[*socket]int64{}
		for i := range sockets {
			sockets[i] = &socket{}
		}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			k := sockets[rapid.IntRange(0, len(sockets)-1).Draw(t, "socket")]
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				e.remove(k)
				delete(ends, k)
			case 1:
				e.set(k, time.Time{})
				delete(ends, k)
			case 2, 3:
				ticks := rapid.IntRange(-5, 3*expirySlots).Draw(t, "ticks")
				e.set(k, time.Now().Add(time.Duration(ticks)*expiryTick+expiryTick/2))
				ends[k] = e.tick + int64(max(ticks, 0)) + 1
			case 4:
				for range rapid.IntRange(1, 2*expirySlots).Draw(t, "turns") {
					for _, k := range e.due() {
						if ends[k] != e.tick {
							t.Fatalf("ended at %d, was to end at %d", e.tick, ends[k])
						}
						delete(ends, k)
					}
					for _, at := range ends {
						if at <= e.tick {
							t.Fatalf("not ended at %d, but it was to at %d", e.tick, at)
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
			t.Fatalf("%d on the wheel, want %d", left, len(ends))
		}
	})
}
