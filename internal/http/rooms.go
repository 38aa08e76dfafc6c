package http

import (
	"fmt"
	"net/http"

	"switchyard/internal/hub"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// defaultRoomLimit is the page size of a list of rooms if the request has no limit.
const defaultRoomLimit = 100

// A roomSummary describes one room in the list of rooms.
type roomSummary struct {
	Room message.Room `json:"room"`
	// Head is the newest seq, First the oldest that is stored.
	Head  message.Seq `json:"head"`
	First message.Seq `json:"first"`
	// LastAt is when Head was stored, RFC 3339 in UTC. It is empty if nothing was
	// ever stored.
	LastAt string `json:"last_at,omitempty"`
}

// listRooms lists rooms in byte order of their names: GET
// /v1/rooms?prefix=&after=&limit=. The last name of a page is the after of the next
// page.
func (a *api) listRooms(w http.ResponseWriter, r *http.Request) error {
	prefix, err := queryRoom(r, "prefix")
	if err != nil {
		return err
	}
	after, err := queryRoom(r, "after")
	if err != nil {
		return err
	}
	limit, given, err := queryInt(r, "limit", 1, hub.MaxRoomList)
	if err != nil {
		return err
	}
	if !given {
		limit = defaultRoomLimit
	}
	found, more, err := a.hub.ListRooms(r.Context(), string(prefix), after, int(limit))
	if err != nil {
		return fmt.Errorf("answering with rooms: %w", err)
	}
	rooms := make([]roomSummary, len(found))
	for i, f := range found {
		rooms[i] = roomSummary{Room: f.Room, Head: f.Head, First: f.First}
		if !f.LastAt.IsZero() {
			rooms[i].LastAt = f.LastAt.UTC().Format(protocol.TimeLayout)
		}
	}
	return writeJSON(w, http.StatusOK, struct {
		Rooms []roomSummary `json:"rooms"`
		More  bool          `json:"more"`
	}{rooms, more})
}

// queryRoom returns an optional query parameter that is a room's name or the
// beginning of one.
func queryRoom(r *http.Request, name string) (message.Room, error) {
	value, _, err := queryOne(r, name)
	if err != nil || value == "" {
		return "", err
	}
	room, err := message.ParseRoom(value)
	if err != nil {
		return "", &message.InvalidError{Field: name, Reason: "must be at most 128 of A-Z a-z 0-9 . _ - :"}
	}
	if room.Reserved() {
		return "", protocol.ErrReserved
	}
	return room, nil
}

// A presenceEntry is one session in a room. User is nil if it is anonymous.
type presenceEntry struct {
	Session message.SessionID `json:"session"`
	User    *string           `json:"user"`
}

// presence lists the sessions in a room, on all nodes: GET
// /v1/rooms/{room}/presence. Over PRESENCE_LIMIT it returns only their number.
func (a *api) presence(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	found, err := a.hub.RoomPresence(r.Context(), room)
	if err != nil {
		return err
	}
	var members []presenceEntry
	if found.Entries != nil {
		members = make([]presenceEntry, len(found.Entries))
	}
	for i := range members {
		m := &found.Entries[i]
		if members[i].Session = m.Session; m.User != "" {
			members[i].User = &m.User
		}
	}
	return writeJSON(w, http.StatusOK, struct {
		Room    message.Room    `json:"room"`
		Count   int             `json:"count"`
		Members []presenceEntry `json:"members,omitzero"`
	}{room, found.Count, members})
}
