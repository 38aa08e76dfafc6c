package http

import "switchyard/internal/message"

// HandleNodeEvent handles a ban or a takeover on another node. It does not block.
func (s *Server) HandleNodeEvent(event message.NodeEvent) {
	if event.Kind == message.EventBanned {
		s.admission.CloseUser(event.User)
		return
	}
	s.sessions.HandleEvent(event)
}
