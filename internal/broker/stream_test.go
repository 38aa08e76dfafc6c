package broker

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
)

// streamEvery makes 500 publications a second.
const streamEvery = 2 * time.Millisecond

// A stream publishes numbers from 0 in one room after the other.
type stream struct {
	rooms []message.Room
	stop  func() // waits; what was published is then in sent
	sent  map[message.Room]int
}

func startStream(t *testing.T, from *node, rooms ...message.Room) *stream {
	t.Helper()
	s := &stream{rooms: rooms, sent: map[message.Room]int{}}
	stopped, ended := make(chan struct{}), make(chan struct{})
	s.stop = sync.OnceFunc(func() { close(stopped); <-ended })
	t.Cleanup(s.stop)
	go func() {
		defer close(ended)
		tick := time.NewTicker(streamEvery)
		defer tick.Stop()
		for i := 0; ; i++ {
			room := rooms[i%len(rooms)]
			from.Publish(room, []byte(strconv.Itoa(s.sent[room])))
			s.sent[room]++
			select {
			case <-tick.C:
			case <-stopped:
				return
			}
		}
	}()
	return s
}

// A streamStats is how a stream's room went at a receiver.
type streamStats struct {
	sent, got, lost, duplicated, reordered int
	pause                                  time.Duration // the longest between two arrivals
}

// stopAndWait stops the stream and waits for the last of each room: the trouble is over.
func (s *stream) stopAndWait(t *testing.T, n *node) {
	t.Helper()
	s.stop()
	for _, room := range s.rooms {
		last := strconv.Itoa(s.sent[room] - 1)
		eventually(t, "the last in "+string(room), func() bool { return slices.Contains(n.received(room), last) })
	}
}

// stats reads what n got of the room, after end.
func (s *stream) stats(t *testing.T, n *node, room message.Room) (c streamStats) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	seen, last := map[int]bool{}, -1
	for i, payload := range n.got[room] {
		number, err := strconv.Atoi(payload)
		if err != nil {
			continue // of another part of the test
		}
		if seen[number] {
			c.duplicated++
		} else if number < last {
			c.reordered++
		}
		seen[number], last = true, max(last, number)
		if i > 0 {
			c.pause = max(c.pause, n.receivedAt[room][i].Sub(n.receivedAt[room][i-1]))
		}
	}
	c.sent, c.got, c.lost = s.sent[room], len(seen), s.sent[room]-len(seen)
	return c
}

func (c streamStats) String() string {
	return fmt.Sprintf("%d sent, %d lost, %d doubled, %d swapped, longest pause %v",
		c.sent, c.lost, c.duplicated, c.reordered, c.pause.Round(time.Millisecond))
}

// waitForMore waits until the node has got so many more of each room than now.
func waitForMore(t *testing.T, n *node, rooms []message.Room, more int) {
	t.Helper()
	want := map[message.Room]int{}
	for _, room := range rooms {
		want[room] = len(n.received(room)) + more
	}
	for _, room := range rooms {
		eventually(t, "more in "+string(room), func() bool { return len(n.received(room)) >= want[room] })
	}
}
