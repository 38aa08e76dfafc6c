package http

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

// heartbeatSlots is the number of parts of a heartbeat period. Each socket is in
// one slot, so that heartbeats are spread and no socket needs a timer.
const heartbeatSlots = 25

// openSockets holds all open sockets and sends them heartbeats. It is safe for
// concurrent use.
type openSockets struct {
	server *Server
	next   uint // slot of the newest socket; guarded by slots[0].mu
	slots  [heartbeatSlots]heartbeatSlot
}

type heartbeatSlot struct {
	mu      sync.Mutex
	sockets []*socket
}

func (o *openSockets) add(sock *socket) {
	o.slots[0].mu.Lock()
	o.next = (o.next + 1) % heartbeatSlots
	sock.heartbeatSlot = int(o.next)
	o.slots[0].mu.Unlock()
	slot := &o.slots[sock.heartbeatSlot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	sock.heartbeatIndex = len(slot.sockets)
	slot.sockets = append(slot.sockets, sock)
}

func (o *openSockets) remove(sock *socket) {
	slot := &o.slots[sock.heartbeatSlot]
	slot.mu.Lock()
	defer slot.mu.Unlock()
	last := len(slot.sockets) - 1
	slot.sockets[sock.heartbeatIndex] = slot.sockets[last]
	slot.sockets[sock.heartbeatIndex].heartbeatIndex = sock.heartbeatIndex
	slot.sockets[last] = nil
	slot.sockets = slot.sockets[:last]
}

// each calls f for every open socket, with its slot locked. f must not block.
func (o *openSockets) each(f func(*socket)) {
	for i := range o.slots {
		slot := &o.slots[i]
		slot.mu.Lock()
		for _, sock := range slot.sockets {
			f(sock)
		}
		slot.mu.Unlock()
	}
}

// loop sends heartbeats until stop closes. A heartbeat is the JSON frame, for
// programs, and a protocol ping, which every client must answer (RFC 6455 §5.5.2).
// loop closes clients that sent no byte for two periods, and clients that take
// longer than that for one frame, because the frame's buffer is held so long.
func (o *openSockets) loop(period time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(period / heartbeatSlots)
	defer tick.Stop()
	var burst handshakeBurst
	for {
		select {
		case <-stop:
			return
		case now := <-tick.C:
			n := o.server.tick.Add(1)
			frame := append(protocol.Heartbeat(now), protocol.PingFrame(uint64(n))...)
			slot := &o.slots[n%heartbeatSlots]
			slot.mu.Lock()
			for _, sock := range slot.sockets {
				if sock.isSilent(n) {
					sock.conn.CloseWith(protocol.CloseNoPong)
				} else {
					sock.knownSession().PingSent(uint64(n))
					sock.conn.Send(frame)
				}
			}
			slot.mu.Unlock()
			if burst.hasEnded(now, o.server.handshakes.count.Load()) {
				o.server.loops.Go(collectGarbage)
			}
		}
	}
}

// isSilent reports whether, at tick n, a client has sent nothing for two periods,
// or has not completed a frame that began before them.
func (sock *socket) isSilent(n int64) bool {
	frameStart := sock.frameStartTick.Load()
	return n-sock.conn.LastRead() > 2*heartbeatSlots && !sock.handling.Load() || frameStart != 0 && n-frameStart > 2*heartbeatSlots
}
