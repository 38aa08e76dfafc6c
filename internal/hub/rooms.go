package hub

import (
	"cmp"
	"slices"

	"switchyard/internal/message"
)

// A RoomState is a live room as operators see it.
type RoomState struct {
	Room    message.Room  `json:"room"`
	Epoch   message.Epoch `json:"epoch"`
	Seq     message.Seq   `json:"seq"`
	Members int           `json:"members"`
	// Held counts messages that wait for one before them.
	Held int `json:"held"`
	// Behind is how many messages are known and not yet delivered.
	Behind message.Seq `json:"behind"`
}

// maxRoomStates bounds the answer of Rooms.
const maxRoomStates = 1000

// Rooms tells the live rooms on this node, those with most members first, at
// most 1,000. Each is told as it is at one moment, not all at the same one.
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

// state is what operators see of a topic. Members are those that are live: who
// is catching up is not among them.
func (t *topic) state() RoomState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return RoomState{
		Room:    t.room,
		Epoch:   t.epoch,
		Seq:     t.last,
		Members: len(t.members),
		Held:    t.reorder.len(),
		Behind:  max(0, t.target-t.last),
	}
}
