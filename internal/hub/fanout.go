package hub

import (
	"runtime"
	"sync"
	"time"

	"switchyard/internal/protocol"
)

const (
	// chunkBytes is about what one write takes to a member, so that a queue
	// has time to empty between two.
	chunkBytes = 64 << 10
	// parallelFanOutMembers is the size from which several goroutines share a room.
	parallelFanOutMembers = 1000
)

// fanOut hands frames to every live member: several frames as one, encoded
// once for all. It never waits on a client: one that does not read is closed by
// its own outlet, and resumes from the log. Caller holds mu, for as long as it
// takes: members come and go between two messages only, and the order of the
// frames is the same for all.
func (t *topic) fanOut(frames []protocol.Frame) {
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

// sendParallel sends one chunk to all, by several goroutines in a wide room. It waits
// for them: the next chunk must not overtake this one.
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

// sendAll sends a chunk to each. One that says it takes no more is not taken out
// here: its reader finds its connection closed and does that.
func sendAll(outlets []Outlet, chunk protocol.Frame) {
	for _, o := range outlets {
		o.Send(chunk)
	}
}

// observeDelivery counts how long the batch took since its commits, in seconds.
func (h *Hub) observeDelivery(batch []roomFrame) {
	now := time.Now().UnixMicro()
	for i := range batch {
		if batch[i].seq > 0 {
			// Another node's clock may be ahead of ours.
			h.metrics.delivery.Observe(max(0, float64(now-batch[i].createdAt)/1e6))
		}
	}
}
