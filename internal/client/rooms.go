package client

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"switchyard/internal/message"
)

var errSkippedMessage = errors.New("the service skipped a message")

// The rooms are those that the client has joined or will join. They keep their
// positions when a connection ends.
type rooms struct {
	*shared
	calls       *calls
	byName      map[message.Room]*roomState
	signalDedup *signalDedup // of the last move; nil before the first
}

// leave leaves the room with that name for all of its readers.
func (r *rooms) leave(name message.Room) {
	if room := r.byName[name]; room != nil {
		for _, rd := range slices.Clone(room.readers) {
			r.leaveReader(name, rd)
		}
	}
}

// leaveReader removes one reader, and leaves the room with the last one.
func (r *rooms) leaveReader(name message.Room, rd *reader) {
	room := r.byName[name]
	if room == nil || !slices.Contains(room.readers, rd) {
		return
	}
	// Not in place: a callback may be iterating.
	room.readers = slices.DeleteFunc(slices.Clone(room.readers), func(other *reader) bool { return other == rd })
	rd.completeJoin(Joined{}, fmt.Errorf("join %s: %w", name, ErrLeft))
	if len(room.readers) > 0 {
		return
	}
	delete(r.byName, name)
	for _, conn := range []*connection{r.current, r.next} {
		if conn == nil || conn.memberships[name] == nil {
			continue
		}
		sent := conn.memberships[name].sent
		delete(conn.memberships, name)
		if sent {
			r.sendLeave(conn, name)
		}
	}
	r.notifyMove()
}

// rejoin joins the rooms on the current connection, unless they were joined on it
// while it was the next one.
func (r *rooms) rejoin() {
	for _, name := range slices.Sorted(maps.Keys(r.byName)) {
		if room := r.byName[name]; r.current.memberships[name] == nil {
			r.sendJoin(r.current, room)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.byName)) {
		if room := r.byName[name]; room.watched {
			r.requestPresence(room)
		}
	}
}

// joinNext joins the rooms on the next connection of a move. Those whose position
// is not known yet follow when it is.
func (r *rooms) joinNext() {
	r.next.allJoined, r.next.progress = make(chan struct{}, 1), make(chan struct{}, 1)
	r.signalDedup = r.signalDedup.start()
	for _, room := range r.byName {
		if room.position().given {
			r.sendJoin(r.next, room)
		}
	}
	r.notifyMove()
}

// allJoined reports whether all rooms are joined on the next connection, or were
// refused there.
func (r *rooms) allJoined() bool {
	for name := range r.byName {
		if m := r.next.memberships[name]; m == nil || (!m.joined && m.removedFor == 0) {
			return false
		}
	}
	return true
}

// notifyMove wakes the move because one more room is joined, or left, on the next
// connection.
func (r *rooms) notifyMove() {
	if r.next == nil {
		return
	}
	notify := r.next.progress
	if r.allJoined() {
		notify = r.next.allJoined
	}
	select {
	case notify <- struct{}{}:
	default:
	}
}

// fail ends the rooms: each Join that waits fails with cause.
func (r *rooms) fail(cause error) {
	for name, room := range r.byName {
		delete(r.byName, name)
		for _, rd := range room.readers {
			rd.completeJoin(Joined{}, cause)
		}
	}
}

// sendJoin joins a room on conn from the last position seen.
func (r *rooms) sendJoin(conn *connection, room *roomState) { r.sendJoinFor(conn, room, false) }

func (r *rooms) sendJoinFor(conn *connection, room *roomState, newReader bool) {
	m := conn.memberships[room.name]
	if m == nil {
		m = &membership{}
		conn.memberships[room.name] = m
	}
	ref := r.nextRef()
	m.ref, m.sent, m.joined, m.presence, m.forNewReader, m.removedFor = ref, false, false, false, newReader, 0
	r.queueJoin(conn, &queuedJoin{ref: ref, onSent: func() { m.sent = true }, frame: func() []byte {
		if now := conn.memberships[room.name]; now != m || m.ref != ref {
			return nil // left, or joined again since
		}
		m.from = room.position()
		return joinFrame(ref, room.name, m.from)
	}})
}

// joinFrame returns a join from a position.
func joinFrame(ref string, room message.Room, from Position) []byte {
	b := newRequest("join", ref, room)
	if from.given {
		b = b.number("after", int64(from.After))
		if from.Epoch != "" {
			b = b.text("epoch", string(from.Epoch))
		}
	}
	return b.end()
}

// sendLeave leaves a room on conn, unless it is joined there again when its turn comes.
func (r *rooms) sendLeave(conn *connection, name message.Room) {
	ref := r.nextRef()
	r.queueJoin(conn, &queuedJoin{ref: ref, frame: func() []byte {
		if conn.memberships[name] != nil {
			return nil
		}
		return newRequest("leave", ref, name).end()
	}})
}

// presenceCall returns the call that requests the presence of a room.
func (r *rooms) presenceCall(ref string, name message.Room) *call {
	return &call{ref: ref, presenceOf: name, frame: newRequest("presence", ref, name).end(), onSent: func(conn *connection) {
		if m := conn.memberships[name]; m != nil && m.sent {
			m.presence = true
		}
	}}
}

// requestPresence requests the presence of a watched room again, for its handler.
func (r *rooms) requestPresence(room *roomState) {
	call := r.presenceCall(r.nextRef(), room.name)
	call.own = func(f *serverFrame, err error) {
		switch {
		case r.byName[room.name] != room, room.removed:
		case err != nil:
			r.opts.Logger.Warn("the presence of a room was not read again", "room", room.name, "err", err)
		default:
			for _, rd := range room.readers {
				notify(r.shared, rd.handler.Presence, f.presence())
			}
		}
	}
	r.calls.add(call)
}

func (r *rooms) handleJoined(conn *connection, f *serverFrame) {
	room, m := r.byName[f.Room], conn.memberships[f.Room]
	if room == nil || m == nil || m.ref != f.Ref {
		return
	}
	joined := Joined{Room: f.Room, Epoch: f.Epoch, Head: f.Seq, First: f.First}
	room.epoch, room.removed = f.Epoch, false
	for _, rd := range room.readers {
		rd.start(joined)
	}
	from := m.from
	if !from.given {
		from = After(f.Epoch, f.Seq)
	}
	if !from.covers(room.position()) {
		// A reader starts before this join, or one in another epoch was taken for the
		// one that lags most.
		r.sendJoinFor(conn, room, m.forNewReader)
		return
	}
	m.joined, m.epoch = true, room.position().Epoch
	onlyNew := m.forNewReader || r.joinedElsewhere(conn, room)
	if conn == r.current && r.next != nil && r.next.memberships[room.name] == nil {
		r.sendJoin(r.next, room) // now that its position is known
	}
	// The service sends changes to the membership that was there when presence was
	// requested.
	if room.watched && !m.presence && conn == r.current && !r.calls.awaitsPresence(room.name) {
		r.requestPresence(room)
	}
	r.notifyMove()
	var added []*reader
	for _, rd := range room.readers {
		isNew := rd.firstJoin != nil
		if isNew {
			added = append(added, rd)
		}
		rd.completeJoin(joined, nil)
		if isNew || !onlyNew {
			notify(r.shared, rd.handler.Joined, joined)
		}
	}
	r.voidPositions(room, joined, added)
}

// joinedElsewhere reports whether a room is joined on the other connection of a
// move, so that its join on conn is not reported.
func (r *rooms) joinedElsewhere(conn *connection, room *roomState) bool {
	for _, other := range []*connection{r.current, r.next} {
		if other != nil && other != conn && other.memberships[room.name] != nil && other.memberships[room.name].joined {
			return true
		}
	}
	return false
}

// handleJoinError reports whether ref is that of a join on conn. After a temporary
// error the client joins again later.
func (r *rooms) handleJoinError(conn *connection, ref string, err *Error) bool {
	var room *roomState
	for name, m := range conn.memberships {
		if m.ref == ref && ref != "" {
			room = r.byName[name]
		}
	}
	if room == nil {
		return false
	}
	if err.temporary() || err.Code == "internal" {
		r.afterFunc(err.retryDelay(r.opts.random), func() { r.retryJoin(conn, room, ref) })
		return true
	}
	r.refuse(room, err)
	return true
}

// retryJoin repeats the join with that ref, unless the room was left or joined
// again since.
func (r *rooms) retryJoin(conn *connection, room *roomState, ref string) {
	if m := conn.memberships[room.name]; (conn == r.current || conn == r.next) && r.byName[room.name] == room && m != nil && m.ref == ref {
		r.sendJoin(conn, room)
	}
}

// handleMessage drops a duplicate, and passes a new message to the handlers. When
// seqs are missing before it, it requests them once. If they are missing again,
// it returns an error, which ends the connection; the next one resumes before
// them.
func (r *rooms) handleMessage(conn *connection, msg message.Message) error {
	room, m := r.byName[msg.Room], conn.memberships[msg.Room]
	if room == nil || m == nil || !m.joined || m.isStaleEpoch(msg.Epoch, room) {
		return nil
	}
	m.epoch, room.epoch = msg.Epoch, msg.Epoch
	missing := false
	for _, rd := range room.readers {
		if !rd.position.given {
			continue
		}
		if msg.Epoch != rd.position.Epoch {
			// The log is in a new epoch, and no gap frame has said so.
			rd.position = After(msg.Epoch, msg.Seq-1)
			if msg.Seq > 1 {
				notify(r.shared, rd.handler.Gap, Gap{Room: msg.Room, Epoch: msg.Epoch, From: 1, To: msg.Seq - 1, Reason: "epoch"})
			}
		}
		switch last := rd.position.After; {
		case msg.Seq == last+1:
			rd.position.After = msg.Seq
			notify(r.shared, rd.handler.Message, msg)
		case msg.Seq > last+1:
			missing = true
		}
	}
	if missing {
		return r.requestMissing(conn, room, msg.Seq)
	}
	return nil
}

// requestMissing joins again from the room's position, because got came instead of
// the position's next seq. It returns errSkippedMessage when a join from that
// position was tried before.
func (r *rooms) requestMissing(conn *connection, room *roomState, got message.Seq) error {
	m, at := conn.memberships[room.name], room.position()
	if m.missingAfter == at {
		m.missingAfter = Position{}
		return fmt.Errorf("%w in %s: %d followed %d", errSkippedMessage, room.name, got, at.After)
	}
	r.opts.Logger.Warn("the service skipped a message; joining again", "room", room.name, "after", at.After, "received", got)
	m.missingAfter = at
	r.sendJoin(conn, room)
	return nil
}

// handleGap moves the readers' positions to the end of a gap and reports the gap,
// unless they are past it already.
func (r *rooms) handleGap(conn *connection, f *serverFrame) error {
	gap, err := f.gap()
	if err != nil {
		return err
	}
	room, m := r.byName[gap.Room], conn.memberships[gap.Room]
	if room == nil || m == nil || !m.joined || m.isStaleEpoch(gap.Epoch, room) {
		return nil
	}
	for _, rd := range room.readers {
		// A new epoch is already known when it came on the other connection.
		known := gap.Epoch == rd.position.Epoch && (gap.Reason != "epoch" || m.epoch != gap.Epoch)
		if !rd.position.given || (known && gap.To <= rd.position.After) {
			continue
		}
		rd.position = After(gap.Epoch, gap.To)
		notify(r.shared, rd.handler.Gap, gap)
	}
	m.epoch, room.epoch = gap.Epoch, gap.Epoch
	return nil
}

// handleSignal passes a signal to the handler, unless the other connection of a
// move has already delivered it.
func (r *rooms) handleSignal(conn *connection, f *serverFrame) {
	room := r.byName[f.Room]
	if room != nil && !r.signalDedup.seenBefore(conn.number, f) {
		for _, rd := range room.readers {
			notify(r.shared, rd.handler.Signal, Signal{Room: f.Room, From: f.user(), Data: f.Data})
		}
	}
}

// handlePresence passes a change to the handler of a watched room, but only from
// the current connection.
func (r *rooms) handlePresence(conn *connection, f *serverFrame) {
	room := r.byName[f.Room]
	if room != nil && room.watched && conn == r.current {
		for _, rd := range room.readers {
			notify(r.shared, rd.handler.Presence, f.presence())
		}
	}
}
