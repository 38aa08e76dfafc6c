package client

import (
	"fmt"
	"slices"
)

// handleLeft handles that the service has taken a room away, because a new token does
// not open it. With a ref it is the answer to a leave.
func (r *rooms) handleLeft(conn *connection, f *serverFrame) {
	room, m := r.byName[f.Room], conn.memberships[f.Room]
	if f.Ref != "" || room == nil || m == nil || (!m.joined && m.removedFor == 0) {
		return // left, or the answer to a join decides
	}
	err := &Error{Code: "forbidden", Message: fmt.Sprintf("the new token does not open %s", f.Room)}
	r.remove(room, []*connection{conn}, 2, err) // the answer to that token is still to come
}

// handleAuthenticated joins the rooms again that the token before did not open.
func (r *rooms) handleAuthenticated(conn *connection) {
	for name, m := range conn.memberships {
		if m.removedFor == 0 {
			continue
		}
		if m.removedFor--; m.removedFor == 0 {
			r.sendJoin(conn, r.byName[name])
		}
	}
}

// refuse handles the refusal of a join. Readers that were joined before wait for a token
// that opens the room, if that is the reason; the others end.
func (r *rooms) refuse(room *roomState, err *Error) {
	ended := slices.DeleteFunc(slices.Clone(room.readers), func(rd *reader) bool { return rd.firstJoin == nil && err.Code == "forbidden" })
	// Not in place: a callback may be iterating.
	room.readers = slices.DeleteFunc(slices.Clone(room.readers), func(rd *reader) bool { return slices.Contains(ended, rd) })
	conns := slices.DeleteFunc([]*connection{r.current, r.next}, func(conn *connection) bool { return conn == nil })
	if len(room.readers) > 0 {
		r.remove(room, conns, 1, err)
	} else {
		delete(r.byName, room.name)
		for _, conn := range conns {
			delete(conn.memberships, room.name)
		}
	}
	for _, rd := range ended {
		if rd.firstJoin == nil {
			notify(r.shared, rd.handler.Ended, error(err))
		}
		rd.completeJoin(Joined{}, err)
	}
	r.notifyMove()
}

// remove keeps the positions of a room's readers, and delivers nothing on these
// connections until the room is joined again there, after so many more accepted tokens.
// The readers are notified unless another connection delivers.
func (r *rooms) remove(room *roomState, conns []*connection, tokens int, err *Error) {
	for _, conn := range conns {
		conn.memberships[room.name] = &membership{removedFor: tokens}
	}
	if room.removed || r.joinedElsewhere(nil, room) {
		return
	}
	room.removed = true
	for _, rd := range room.readers {
		notify(r.shared, rd.handler.Ended, error(err))
	}
}
