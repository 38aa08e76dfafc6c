package http

import (
	"time"

	"switchyard/internal/conn"
	"switchyard/internal/protocol"
	"switchyard/internal/wheel"
)

// heartbeatLoop sends heartbeats until s.stop closes. A heartbeat is the JSON frame, for
// programs, and a protocol ping, which every client must answer (RFC 6455 §5.5.2).
// The loop closes clients that sent no byte for two periods, clients that take longer
// than that for one frame, because the frame's buffer is held so long, and clients
// that take nothing of what waits in the socket, whatever they send.
func (s *Server) heartbeatLoop(period time.Duration) {
	tick := time.NewTicker(period / wheel.SlotCount)
	defer tick.Stop()
	var burst handshakeBurst
	for {
		select {
		case <-s.stop:
			return
		case now := <-tick.C:
			n := s.tick.Add(1)
			frame := append(protocol.Heartbeat(now), protocol.PingFrame(uint64(n))...)
			s.openSockets.EachAt(n, func(sock *socket) {
				switch {
				case sock.isSilent(n):
					sock.conn.CloseWith(protocol.CloseNoPong)
				case sock.conn.IsStuck():
					sock.conn.CloseSlow(conn.CloseTimeout)
				default:
					sock.knownSession().PingSent(uint64(n))
					sock.conn.Send(frame)
				}
			})
			if burst.hasEnded(now, s.handshakes.count.Load()) {
				s.loops.Go(collectGarbage)
			}
		}
	}
}

// isSilent reports whether, at tick n, a client has sent nothing for two periods,
// or has not completed a frame that began before them.
func (sock *socket) isSilent(n int64) bool {
	frameStart := sock.frameStartTick.Load()
	return n-sock.conn.LastRead() > 2*wheel.SlotCount && !sock.handling.Load() || frameStart != 0 && n-frameStart > 2*wheel.SlotCount
}

// expiryLoop closes connections whose token has expired, or that never authenticated,
// until s.stop closes.
func (s *Server) expiryLoop() {
	tick := time.NewTicker(wheel.Tick)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			for _, sock := range s.expiry.Advance(time.Now()) {
				sock.conn.CloseWith(protocol.CloseUnauthorized)
			}
		}
	}
}
