package http

import "switchyard/internal/message"

// HandleNodeEvent handles a ban or a takeover on another node. It does not block.
func (s *Server) HandleNodeEvent(event message.NodeEvent) {
	if event.Kind == message.EventBanned {
		s.closeUser(event.User)
		return
	}
	if event.Kind != message.EventTakeover && event.Kind != message.EventSessionLive {
		return
	}
	for _, sock := range s.sessions.find(event.Session) {
		sock.session.mu.Lock()
		if sock.session.record.Generation < event.Generation {
			sock.session.released = true
			// A client that was asked to move closes this connection itself, after
			// it has joined rooms that may not be saved in the session yet.
			if event.Kind == message.EventSessionLive && !sock.moveRequest.IsMade() {
				sock.closeReplacedIn(oldConnectionTimeout)
			} else {
				sock.closeReplacedIn(sock.server.cfg.TakeoverTimeout)
			}
		}
		sock.session.mu.Unlock()
	}
}
