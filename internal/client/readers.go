package client

import (
	"fmt"
	"slices"

	"switchyard/internal/message"
)

// join adds a reader. The room is joined again if it is joined already: the answer
// has its bounds for the new reader, which come to rd.firstJoin. alone: the room
// must not be joined already.
func (r *rooms) join(name message.Room, rd *reader, alone bool) error {
	room := r.byName[name]
	switch {
	case r.err != nil:
		return r.err
	case room != nil && alone && room.removed:
		room.readers = nil // this join takes the place of the one that has ended
	case room != nil && alone:
		return fmt.Errorf("%w: %s", ErrJoined, name)
	case room == nil:
		room = &roomState{name: name}
		r.byName[name] = room
	}
	room.readers = append(room.readers, rd)
	for _, conn := range []*connection{r.current, r.next} {
		if conn == nil || (conn == r.next && conn.memberships[name] == nil && !room.position().given) {
			continue
		}
		m := conn.memberships[name]
		r.sendJoinFor(conn, room, m != nil && (m.joined || m.forNewReader))
	}
	return nil
}

// voidPositions reports a gap to the readers whose position is void: those in another
// epoch, and those of the added ones that are above the newest message. The service
// reports it for the position that the room was joined from.
func (r *rooms) voidPositions(room *roomState, j Joined, added []*reader) {
	at := room.position()
	if at.Epoch != j.Epoch || at.After > j.Head {
		return // a gap follows, for all of them
	}
	for _, rd := range room.readers {
		if rd.position.Epoch == j.Epoch && (rd.position.After <= j.Head || !slices.Contains(added, rd)) {
			continue
		}
		rd.position = at
		if at.After > 0 {
			notify(r.shared, rd.handler.Gap, Gap{Room: room.name, Epoch: j.Epoch, From: 1, To: at.After, Reason: "epoch"})
		}
	}
}
