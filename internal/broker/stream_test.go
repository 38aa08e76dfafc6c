package broker

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// streamEvery is the interval between two broadcasts of a stream: 500 a second.
const streamEvery = 2 * time.Millisecond

// A stream publishes increasing numbers from 0, in one room after the other.
type stream struct {
	rooms []message.Room
	stop  func() // returns when the stream has ended, and sent is final
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

// A streamStats is what a receiver got of one room of a stream.
type streamStats struct {
	sent, got, lost, duplicated, reordered int
	pause                                  time.Duration // the longest between two arrivals
}

// stopAndWait stops the stream and waits until n has received the last number of
// each room.
func (s *stream) stopAndWait(t *testing.T, n *node) {
	t.Helper()
	s.stop()
	for _, room := range s.rooms {
		last := strconv.Itoa(s.sent[room] - 1)
		testkit.Eventually(t, "the last in "+string(room), func() bool { return slices.Contains(n.received(room), last) })
	}
}

// stats returns what n got of a room. It is called after stopAndWait.
func (s *stream) stats(t *testing.T, n *node, room message.Room) (c streamStats) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	seen, last := map[int]bool{}, -1
	for i, payload := range n.got[room] {
		number, err := strconv.Atoi(payload)
		if err != nil {
			continue // not a broadcast of the stream
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
	return fmt.Sprintf("%d sent, %d lost, %d duplicates, %d reordered, longest pause %v",
		c.sent, c.lost, c.duplicated, c.reordered, c.pause.Round(time.Millisecond))
}

// waitForMore waits until the node has received that many more broadcasts of
// each room.
func waitForMore(t *testing.T, n *node, rooms []message.Room, more int) {
	t.Helper()
	want := map[message.Room]int{}
	for _, room := range rooms {
		want[room] = len(n.received(room)) + more
	}
	for _, room := range rooms {
		testkit.Eventually(t, "more in "+string(room), func() bool { return len(n.received(room)) >= want[room] })
	}
}
