package hub

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A judge holds what members get against what the ledger knows, frame by frame.
// It keeps the first complaint.
type judge struct {
	log    *ledger
	faulty func() bool // whether a fault is in the way of joins now

	mu        sync.Mutex
	complaint string
	troubled  time.Time // until when refusals are excused
}

func (j *judge) complain(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.complaint == "" {
		j.complaint = fmt.Sprintf(format, args...)
	}
}

func (j *judge) verdict() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.complaint
}

// excuse lets joins be refused until a while after a fault. A join waits for the
// topic to open and then for its page, each bounded.
func (j *judge) excuse() {
	if j.faulty() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.troubled = time.Now().Add(subscribeTimeout + 2*logTimeout)
	}
}

func (j *judge) excused() bool {
	if j.faulty() {
		return true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return time.Now().Before(j.troubled)
}

// A position is how far a member has come: what the next frame is held against.
type position struct {
	epoch message.Epoch
	seq   message.Seq
}

// An ask is a join that is not answered yet.
type ask struct {
	room     message.Room
	from     position
	now      bool // from now: without a position
	ahead    bool // the log had never been there when it was asked
	replaced bool // by a leave or another join: its answer is an error
}

// A seat is a player's place in one room, and the model of what comes there:
// after `joined`, each next message of the log, with gaps only for what the log
// does not have; after `left` nothing.
type seat struct {
	in      bool
	at      position // stays when the seat is lost: the next join may resume from it
	ahead   bool     // at is where the log never was
	asked   string   // ref of the newest join, until it is answered
	leaving bool

	pinged position // where it was at the last ping of this stay
	proved position // and at the last that was answered, or at its join
}

// A player is a person with one connection at a time. Safe for concurrent use.
type player struct {
	*judge
	name string
	node int

	mu    sync.Mutex
	line  *line
	refs  int
	owed  map[string]*ask
	seats map[message.Room]*seat
}

// A line is one connection of a player. It implements Outlet.
type line struct {
	player *player
	client *Client
	stuck  chan struct{} // Flushed waits for it; nil: it does not wait
	ended  chan struct{} // closed with the connection
	dead   bool
}

// Send implements Outlet.
func (l *line) Send(f protocol.Frame) bool {
	p := l.player
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.dead {
		return false
	}
	for _, v := range unpack(f) {
		p.takes(v)
	}
	return true
}

// Queue implements Outlet.
func (l *line) Queue(f protocol.Frame) bool { return l.Send(f) }

// Flush implements Outlet.
func (l *line) Flush() {}

// Flushed implements Outlet.
func (l *line) Flushed(ctx context.Context) error {
	l.player.mu.Lock()
	stuck := l.stuck
	l.player.mu.Unlock()
	if stuck == nil {
		stuck = make(chan struct{})
		close(stuck)
	}
	select {
	case <-l.ended:
		return net.ErrClosed
	default:
	}
	select {
	case <-stuck:
		return nil
	case <-l.ended:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func number(v any) message.Seq {
	f, _ := v.(float64)
	return message.Seq(f)
}

func word(v any) string {
	s, _ := v.(string)
	return s
}

// takes judges one frame. Caller holds mu.
func (p *player) takes(v map[string]any) {
	room, epoch := message.Room(word(v["room"])), message.Epoch(word(v["epoch"]))
	s := p.seats[room]
	if s == nil {
		p.complain("%s got %v of a room it never asked for", p.name, v)
		return
	}
	switch kind := word(v["type"]); kind {
	case "joined":
		p.joined(room, s, word(v["ref"]), position{epoch, number(v["seq"])}, number(v["first"]))
	case "error":
		p.refused(word(v["ref"]), word(v["code"]))
	case "left":
		if !s.leaving {
			p.complain("%s got left of %s, and did not leave", p.name, room)
		}
		s.in, s.leaving = false, false
	case "message", "gap", "signal":
		if !s.in {
			p.complain("%s got a %s of %s, where it is not", p.name, kind, room)
			return
		}
		switch kind {
		case "message":
			p.next(room, s, position{epoch, number(v["seq"])}, word(v["id"]))
		case "gap":
			p.gap(room, s, epoch, number(v["from"]), number(v["to"]), word(v["reason"]))
		}
	}
}

// joined begins a stay: the position is the one asked for, or the head told.
func (p *player) joined(room message.Room, s *seat, ref string, head position, first message.Seq) {
	a := p.owed[ref]
	if a == nil || ref != s.asked || a.replaced {
		p.complain("%s got joined of %s for %q, which it does not wait for", p.name, room, ref)
		return
	}
	delete(p.owed, ref)
	if most, known := p.log.head(head.epoch, room); !known || head.seq > most || first > head.seq+1 {
		p.complain("%s joined %s at %v from %d, where the log never was", p.name, room, head, first)
	}
	s.in, s.asked, s.at, s.ahead = true, "", a.from, a.ahead
	switch {
	case a.now:
		s.at = head
	case s.at.epoch == "":
		s.at.epoch = head.epoch
	}
	s.pinged, s.proved = position{}, s.at
	if s.at.epoch == head.epoch && s.at.seq > head.seq && !s.ahead {
		p.complain("%s joined %s after %v, and is told that its head is %v", p.name, room, s.at, head)
	}
}

// refused takes the answer to a join that came to nothing.
func (p *player) refused(ref, code string) {
	a := p.owed[ref]
	switch {
	case a == nil:
		p.complain("%s got an error for %q, which it does not wait for", p.name, ref)
		return
	case a.replaced && code == "invalid":
	case code == "unavailable" && p.excused():
	default:
		p.complain("%s was refused %s: %s, and nothing was in the way", p.name, a.room, code)
	}
	delete(p.owed, ref)
	if s := p.seats[a.room]; s.asked == ref {
		s.in, s.asked = false, "" // the stay before it ended first
	}
}

// next takes a message: it is the next one, and what the log holds there.
func (p *player) next(room message.Room, s *seat, got position, id string) {
	if want := (position{s.at.epoch, s.at.seq + 1}); got != want {
		p.complain("%s got %v of %s, not %v", p.name, got, room, want)
		return
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	book := p.log.books[got.epoch][room]
	if int(got.seq) > len(book) || book[got.seq-1].ID != id {
		p.complain("%s got %v of %s as %s, which the log does not have", p.name, got, room, id)
		return
	}
	s.at, s.ahead = got, false
}

// gap takes a declared gap: what it covers is not to be had.
func (p *player) gap(room message.Room, s *seat, epoch message.Epoch, from, to message.Seq, reason string) {
	most, known := p.log.head(epoch, room)
	switch {
	case !known || to > most:
		p.complain("%s got a gap of %s up to %d in %s, where the log never was", p.name, room, to, epoch)
	case reason == "trimmed" && (epoch != s.at.epoch || from != s.at.seq+1 || to < from || to >= p.log.oldest(epoch, room)):
		p.complain("%s at %v of %s got a gap of %d to %d in %s, which is not what was trimmed", p.name, s.at, room, from, to, epoch)
	case reason == "epoch" && (from != 1 || !p.isVoid(s, epoch)):
		p.complain("%s at %v of %s got a gap of %d to %d in %s, and its position is good", p.name, s.at, room, from, to, epoch)
	}
	s.at, s.ahead = position{epoch, to}, false
}

// isVoid says whether a position means nothing in a log of that epoch.
func (p *player) isVoid(s *seat, epoch message.Epoch) bool {
	if s.at.epoch == epoch {
		return s.ahead
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	was := slices.Index(p.log.epochs, s.at.epoch) // -1: a lie
	return was < slices.Index(p.log.epochs, epoch)
}

// lacks says what a player has not got, "" when all has come.
func (p *player) lacks() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, room := range slices.Sorted(maps.Keys(p.seats)) {
		if ref := p.seats[room].asked; ref != "" {
			return fmt.Sprintf("%s has no answer to its join %s of %s", p.name, ref, room)
		}
	}
	p.log.mu.Lock()
	epoch := p.log.epoch()
	p.log.mu.Unlock()
	for _, room := range slices.Sorted(maps.Keys(p.seats)) {
		s := p.seats[room]
		head, _ := p.log.head(epoch, room)
		if want := (position{epoch, head}); s.in && s.at != want {
			return fmt.Sprintf("%s is at %v of %s, and the log at %v", p.name, s.at, room, want)
		}
	}
	if len(p.owed) > 0 {
		return fmt.Sprintf("%s has no answer to %d joins that it took back", p.name, len(p.owed))
	}
	return ""
}
