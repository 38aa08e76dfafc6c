package http

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

// beatSlots is how many parts the heartbeat period has: each socket is in one,
// so that beats are spread and no socket needs a timer.
const beatSlots = 25

// A beat holds all open sockets and sends their heartbeats. Safe for
// concurrent use.
type beat struct {
	server *Server
	next   uint // slot of the next socket, guarded by slots[0].mu
	slots  [beatSlots]beatSlot
}

type beatSlot struct {
	mu      sync.Mutex
	sockets []*socket
}

func (b *beat) add(k *socket) {
	b.slots[0].mu.Lock()
	b.next = (b.next + 1) % beatSlots
	k.slot = int(b.next)
	b.slots[0].mu.Unlock()
	slot := &b.slots[k.slot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	k.index = len(slot.sockets)
	slot.sockets = append(slot.sockets, k)
}

func (b *beat) remove(k *socket) {
	slot := &b.slots[k.slot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	last := len(slot.sockets) - 1
	slot.sockets[k.index] = slot.sockets[last]
	slot.sockets[k.index].index = k.index
	slot.sockets[last] = nil
	slot.sockets = slot.sockets[:last]
}

// each calls f for every socket that is open; f must not block.
func (b *beat) each(f func(*socket)) {
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
// clients, and a protocol ping, which every client must answer (RFC 6455
// §5.5.2): whoever sent no byte for two periods is closed, and so is whoever
// takes longer than that for one frame, since the buffer for it is held so long.
func (b *beat) loop(period time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(period / beatSlots)
	defer tick.Stop()
	var w wave
	for {
		select {
		case <-stop:
			return
		case now := <-tick.C:
			n := b.server.clock.Add(1)
			frame := append(protocol.Heartbeat(now), protocol.PingFrame(uint64(n))...)
			slot := &b.slots[n%beatSlots]
			slot.mu.Lock()
			for _, k := range slot.sockets {
				if k.silent(n) {
					k.conn.CloseWith(protocol.CloseUnanswered)
				} else {
					k.ping(uint64(n))
					k.conn.Send(frame)
				}
			}
			slot.mu.Unlock()
			if w.over(now, b.server.handshakes.count.Load()) {
				b.server.loops.Go(tidy)
			}
		}
	}
}

// silent says whether a client has sent nothing for two periods, at tick n, or
// not the end of a frame that began before them.
func (k *socket) silent(n int64) bool {
	begun := k.begun.Load()
	return n-k.conn.seen.Load() > 2*beatSlots && !k.busy.Load() || begun != 0 && n-begun > 2*beatSlots
}
