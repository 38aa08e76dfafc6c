package http

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The wheel is compared with a plain list. It returns exactly the sockets whose
// deadline has passed, whatever was set, set again and removed before, and however
// many ticks the wheel is behind.
func TestTheTimerWheelClosesEachSocketOnTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// The start is an hour ahead, so that the clock that set reads is behind
		// all that happens.
		e := expiryWheel{start: time.Now().Add(time.Hour)}
		at := func(tick int64) time.Time { return e.start.Add(time.Duration(tick) * expiryTick) }
		e.tick = int64(rapid.IntRange(0, 3*expirySlots).Draw(t, "begin"))
		sockets := make([]*socket, 20)
		ends := map[*socket]int64{}
		for i := range sockets {
			sockets[i] = &socket{}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			sock := sockets[rapid.IntRange(0, len(sockets)-1).Draw(t, "socket")]
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				e.remove(sock)
				delete(ends, sock)
			case 1:
				e.set(sock, time.Time{})
				delete(ends, sock)
			case 2, 3:
				ticks := rapid.IntRange(-5, 3*expirySlots).Draw(t, "ticks")
				e.set(sock, at(e.tick+int64(ticks)).Add(expiryTick/2))
				ends[sock] = e.tick + int64(max(ticks, 0)) + 1
			case 4:
				behind := int64(rapid.SampledFrom([]int{1, 1, 3, expirySlots / 5, 3 * expirySlots}).Draw(t, "behind"))
				for range rapid.SampledFrom([]int{1, 2, 10, 100}).Draw(t, "turns") {
					before := e.tick
					for _, sock := range e.advance(at(before + behind)) {
						if ends[sock] <= before || ends[sock] > e.tick {
							t.Fatalf("a socket ended between ticks %d and %d, want %d", before, e.tick, ends[sock])
						}
						delete(ends, sock)
					}
					for _, at := range ends {
						if at <= e.tick {
							t.Fatalf("a socket did not end by tick %d, want %d", e.tick, at)
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
			t.Fatalf("%d sockets are on the wheel, want %d", left, len(ends))
		}
	})
}
