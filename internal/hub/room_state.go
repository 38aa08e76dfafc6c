package hub

import (
	"cmp"
	"slices"

	"switchyard/internal/message"
)

// A RoomState describes a topic to operators.
type RoomState struct {
	Room    message.Room  `json:"room"`
	Epoch   message.Epoch `json:"epoch"`
	Seq     message.Seq   `json:"seq"`
	Members int           `json:"members"`
	// Buffered is the number of messages in the reorder buffer.
	Buffered int `json:"held"`
	// Behind is how many messages are known to exist and not yet delivered.
	Behind message.Seq `json:"behind"`
}

// maxRoomStates bounds the result of Rooms.
const maxRoomStates = 1000

// Rooms returns the topics of this node, those with most members first, at most
// 1,000. The states are not of one moment.
func (h *Hub) Rooms() []RoomState {
	states := []RoomState{}
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.RLock()
		for _, t := range s.topics {
			states = append(states, t.state())
		}
		s.mu.RUnlock()
	}
	slices.SortFunc(states, func(a, b RoomState) int {
		return cmp.Or(cmp.Compare(b.Members, a.Members), cmp.Compare(a.Room, b.Room))
	})
	return states[:min(len(states), maxRoomStates)]
}

// state returns the topic's state. Members that are catching up do not count.
func (t *topic) state() RoomState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return RoomState{
		Room:     t.room,
		Epoch:    t.epoch,
		Seq:      t.last,
		Members:  len(t.members),
		Buffered: t.reorder.len(),
		Behind:   max(0, t.knownHead-t.last),
	}
}
