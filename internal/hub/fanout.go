package hub

import (
	"runtime"
	"sync"
	"time"

	"switchyard/internal/protocol"
)

const (
	// chunkBytes is roughly the size of one write to a member, so that an
	// outlet can empty between two writes.
	chunkBytes = 64 << 10
	// parallelFanOutMembers is the number of members for each goroutine that
	// shares a fan-out. A topic with fewer than twice as many uses one.
	parallelFanOutMembers = 1000
)

// fanOut sends frames to every live member. It joins several frames into one,
// once for all members. It never waits for a client: the outlet of a slow
// client closes its connection, and the client resumes from the log. Caller
// holds mu all the while, so that members join and leave only between messages
// and every member gets the same order.
func (t *topic) fanOut(frames []protocol.Frame) {
	defer t.observeDelivery()
	if len(frames) == 0 || len(t.outlets) == 0 {
		return
	}
	t.hub.metrics.sent.Add(float64(len(frames) * len(t.outlets)))
	for len(frames) > 0 {
		n, size := 0, 0
		for n < len(frames) && (n == 0 || size+len(frames[n]) <= chunkBytes) {
			size += len(frames[n])
			n++
		}
		t.sendParallel(concatFrames(frames[:n]))
		frames = frames[n:]
	}
}

// sendParallel sends one chunk to all members, with several goroutines if there
// are many. It waits for these goroutines, because the next chunk must not
// overtake this one.
func (t *topic) sendParallel(chunk protocol.Frame) {
	workers := min(runtime.GOMAXPROCS(0), len(t.outlets)/parallelFanOutMembers)
	if workers < 2 {
		sendAll(t.outlets, chunk)
		return
	}
	var wg sync.WaitGroup
	share := (len(t.outlets) + workers - 1) / workers
	for rest := t.outlets; len(rest) > 0; {
		part := rest[:min(share, len(rest))]
		rest = rest[len(part):]
		wg.Go(func() { sendAll(part, chunk) })
	}
	wg.Wait()
}

// sendAll sends a chunk to each outlet. It ignores an outlet that accepts no
// more: its connection is closing, and the goroutine that reads the connection
// removes the member.
func sendAll(outlets []Outlet, chunk protocol.Frame) {
	for _, o := range outlets {
		o.Send(chunk)
	}
}

// observeDelivery records the time in seconds from the commit of each message that was
// just fanned out until now. A message that waited behind a hole counts once, when it is
// sent. Caller holds mu.
func (t *topic) observeDelivery() {
	now := time.Now().UnixMicro()
	for _, createdAt := range t.commitTimes {
		// The clock of another node may be ahead of ours.
		t.hub.metrics.delivery.Observe(max(0, float64(now-createdAt)/1e6))
	}
	t.commitTimes = t.commitTimes[:0]
	if cap(t.commitTimes) > 64 {
		t.commitTimes = nil
	}
}
