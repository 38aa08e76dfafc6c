package http

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

// heartbeatSlots is the number of parts of a heartbeat period. Each socket is in
// one slot, so that heartbeats are spread and no socket needs a timer.
const heartbeatSlots = 25

// A heartbeat holds all open sockets and sends them heartbeats. It is safe for
// concurrent use.
type heartbeat struct {
	server *Server
	next   uint // slot of the newest socket; guarded by slots[0].mu
	slots  [heartbeatSlots]heartbeatSlot
}

type heartbeatSlot struct {
	mu      sync.Mutex
	sockets []*socket
}

func (b *heartbeat) add(k *socket) {
	b.slots[0].mu.Lock()
	b.next = (b.next + 1) % heartbeatSlots
	k.heartbeatSlot = int(b.next)
	b.slots[0].mu.Unlock()
	slot := &b.slots[k.heartbeatSlot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	k.heartbeatIndex = len(slot.sockets)
	slot.sockets = append(slot.sockets, k)
}

func (b *heartbeat) remove(k *socket) {
	slot := &b.slots[k.heartbeatSlot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	last := len(slot.sockets) - 1
	slot.sockets[k.heartbeatIndex] = slot.sockets[last]
	slot.sockets[k.heartbeatIndex].heartbeatIndex = k.heartbeatIndex
	slot.sockets[last] = nil
	slot.sockets = slot.sockets[:last]
}

// each calls f for every open socket, with its slot locked. f must not block.
func (b *heartbeat) each(f func(*socket)) {
	for i := range b.slots {
		slot := &b.slots[i]
		slot.mu.Lock()
		for _, k := range slot.sockets {
			f(k)
		}
		slot.mu.Unlock()
	}
}

// loop sends heartbeats until stop closes. A heartbeat is the JSON frame, for
// programs, and a protocol ping, which every client must answer (RFC 6455 §5.5.2).
// loop closes clients that sent no byte for two periods, and clients that take
// longer than that for one frame, because the frame's buffer is held so long.
func (b *heartbeat) loop(period time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(period / heartbeatSlots)
	defer tick.Stop()
	var burst handshakeBurst
	for {
		select {
		case <-stop:
			return
		case now := <-tick.C:
			n := b.server.tick.Add(1)
			frame := append(protocol.Heartbeat(now), protocol.PingFrame(uint64(n))...)
			slot := &b.slots[n%heartbeatSlots]
			slot.mu.Lock()
			for _, k := range slot.sockets {
				if k.isSilent(n) {
					k.conn.CloseWith(protocol.CloseNoPong)
				} else {
					k.pingSent(uint64(n))
					k.conn.Send(frame)
				}
			}
			slot.mu.Unlock()
			if burst.hasEnded(now, b.server.handshakes.count.Load()) {
				b.server.loops.Go(collectGarbage)
			}
		}
	}
}

// isSilent reports whether, at tick n, a client has sent nothing for two periods,
// or has not completed a frame that began before them.
func (k *socket) isSilent(n int64) bool {
	frameStart := k.frameStartTick.Load()
	return n-k.conn.lastReadTick.Load() > 2*heartbeatSlots && !k.handling.Load() || frameStart != 0 && n-frameStart > 2*heartbeatSlots
}
