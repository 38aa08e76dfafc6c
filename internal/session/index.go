package session

import (
	"slices"
	"sync"

	"switchyard/internal/message"
)

// An index finds the connections of a session: one, or two during a takeover on one
// node. It is safe for concurrent use.
type index struct {
	mu       sync.Mutex
	sessions map[message.SessionID][]*Session
}

func (x *index) add(s *Session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sessions[s.id] = append(x.sessions[s.id], s)
}

func (x *index) remove(s *Session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	remaining := slices.DeleteFunc(x.sessions[s.id], func(other *Session) bool { return other == s })
	if len(remaining) == 0 {
		delete(x.sessions, s.id)
	} else {
		x.sessions[s.id] = remaining
	}
}

func (x *index) find(id message.SessionID) []*Session {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.sessions[id])
}
