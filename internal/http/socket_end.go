package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/conn"
	"switchyard/internal/protocol"
)

// end removes the client from everything and closes the connection.
func (sock *socket) end(err error) {
	s := sock.server
	_, ours := sock.conn.CloseStatus()
	endedByClient := !ours && websocket.CloseStatus(err) == websocket.StatusNormalClosure
	moving := sock.isMoving()
	sock.session.Detach(endedByClient)
	if sock.client != nil {
		sock.client.Close(endedByClient && !moving)
	}
	if sock.usage.carried != nil {
		s.allowances.close(sock.usage.carried, s.cfg.now())
	}
	s.expiry.Remove(sock)
	s.openSockets.Remove(sock)
	if isProtocolError(sock.conn, err) {
		// The library ends on some frames without a close frame (an unmasked one).
		sock.conn.CloseWith(protocol.CloseProtocol)
	}
	code, reason := closeReason(sock.conn, err)
	if _, ours := sock.conn.CloseStatus(); ours {
		awaitClose(sock.ws)
	}
	_ = sock.ws.CloseNow() // flushes and lingers (see conn.Close), then closes
	s.metrics.active.Dec()
	s.metrics.disconnections.WithLabelValues(reason).Inc()
	if code != protocol.CloseNormal && code != protocol.CloseRestart && reason != reasonClient && reason != reasonLost {
		s.cfg.Hub.CountError(reason)
	}
	if sock.moveRequest.IsMade() || code == protocol.CloseRestart {
		s.drain.RecordEnd(code, reason == reasonClient)
	}
	took := time.Since(sock.started)
	s.metrics.lifetime.Observe(took.Seconds())
	line := []any{
		"code", int(code), "reason", reason, "remote", sock.remote, "request_id", sock.requestID,
		"duration", took, "frames_in", sock.framesReceived, "bytes_out", sock.conn.SentBytes(),
	}
	if sock.client == nil { // nobody was let in
		s.respond.log.record(context.Background(), slog.LevelInfo, "connection ended", line...)
	} else {
		s.log.Info("connection ended", line...)
	}
	sock.admission.Release(sock)
}

// isProtocolError reports whether a read failed because of what the client sent,
// and no close frame has been sent.
func isProtocolError(c *conn.Conn, err error) bool {
	var network net.Error
	code, _ := c.CloseStatus()
	return code == 0 && websocket.CloseStatus(err) == -1 && !errors.As(err, &network) &&
		!errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

// awaitClose reads until the client has answered our close frame. The deadline of
// the close frame bounds it.
func awaitClose(ws *websocket.Conn) {
	for {
		_, r, err := ws.Reader(context.Background())
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// The reasons of connections that the service did not close.
const (
	reasonClient = "client" // the client sent a close frame
	reasonLost   = "lost"   // no close frame: cut, killed, or gone
)

// codeAbnormal means that there was no close frame (RFC 6455 §7.4.1).
const codeAbnormal protocol.CloseCode = 1006

// closeReason returns why a connection ended whose last read failed. The code is the
// one that the client got or sent.
func closeReason(c *conn.Conn, err error) (protocol.CloseCode, string) {
	code, ours := c.CloseStatus()
	if ours {
		return code, code.Reason()
	}
	if status := websocket.CloseStatus(err); status != -1 {
		return protocol.CloseCode(status), reasonClient
	}
	if code != 0 {
		return code, code.Reason()
	}
	return codeAbnormal, reasonLost
}
