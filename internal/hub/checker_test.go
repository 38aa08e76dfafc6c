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

// A checker compares each frame that a client receives with the model log. It
// keeps the first failure.
type checker struct {
	log         *modelLog
	faultActive func() bool // whether a fault may delay joins now

	mu         sync.Mutex
	failure    string
	graceUntil time.Time // until then joins may be refused
}

func (c *checker) failf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == "" {
		c.failure = fmt.Sprintf(format, args...)
	}
}

func (c *checker) firstFailure() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// extendGrace allows refused joins for a while after a fault. A join waits for
// the topic to open and then for its page, each bounded.
func (c *checker) extendGrace() {
	if c.faultActive() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.graceUntil = time.Now().Add(subscribeTimeout + 2*logTimeout)
	}
}

func (c *checker) inGrace() bool {
	if c.faultActive() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.graceUntil)
}

// A modelPosition is how far a client has come in a room. The next frame is
// compared with it.
type modelPosition struct {
	epoch message.Epoch
	seq   message.Seq
}

// A pendingJoin is a join that is not answered yet.
type pendingJoin struct {
	room     message.Room
	from     modelPosition
	fromNow  bool // without a position
	ahead    bool // the log had not reached the position when the join was sent
	replaced bool // by a leave or another join: its answer is an error
}

// A roomModel is a client's membership in one room, and what may arrive there:
// after `joined`, each next message of the log, and gaps only for messages that
// the log does not have; after `left`, nothing.
type roomModel struct {
	joined  bool
	at      modelPosition // kept when the membership ends: the next join may resume from it
	ahead   bool          // at is a position that the log never reached
	joinRef string        // ref of the newest join, until it is answered
	leaving bool

	atPing    modelPosition // at at the last ping of this membership
	confirmed modelPosition // at at the last ping that was answered, or at the join
}

// A simClient is a client with one connection at a time. It is safe for
// concurrent use.
type simClient struct {
	*checker
	name string
	node int

	mu           sync.Mutex
	conn         *simConn
	refs         int
	pendingJoins map[string]*pendingJoin
	rooms        map[message.Room]*roomModel
}

// A simConn is one connection of a simClient. It implements Outlet.
type simConn struct {
	owner   *simClient
	client  *Client
	blocked chan struct{} // Flushed waits for it, unless it is nil
	ended   chan struct{} // closed with the connection
	closed  bool
}

// Send implements Outlet.
func (conn *simConn) Send(f protocol.Frame) bool {
	c := conn.owner
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn.closed {
		return false
	}
	for _, v := range decodeFrames(f) {
		c.checkFrame(v)
	}
	return true
}

// Queue implements Outlet.
func (conn *simConn) Queue(f protocol.Frame) bool { return conn.Send(f) }

// Flush implements Outlet.
func (conn *simConn) Flush() {}

// SendAnswer implements Outlet.
func (conn *simConn) SendAnswer(f protocol.Frame) bool { return conn.Send(f) }

// Answered implements Outlet.
func (conn *simConn) Answered(context.Context) error { return nil }

// Flushed implements Outlet.
func (conn *simConn) Flushed(ctx context.Context) error {
	conn.owner.mu.Lock()
	blocked := conn.blocked
	conn.owner.mu.Unlock()
	if blocked == nil {
		blocked = make(chan struct{})
		close(blocked)
	}
	select {
	case <-conn.ended:
		return net.ErrClosed
	default:
	}
	select {
	case <-blocked:
		return nil
	case <-conn.ended:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func asSeq(v any) message.Seq {
	f, _ := v.(float64)
	return message.Seq(f)
}

func asString(v any) string {
	s, _ := v.(string)
	return s
}

// checkFrame checks one frame. Caller holds mu.
func (c *simClient) checkFrame(v map[string]any) {
	room, epoch := message.Room(asString(v["room"])), message.Epoch(asString(v["epoch"]))
	model := c.rooms[room]
	if model == nil {
		c.failf("%s got %v of a room that it never joined", c.name, v)
		return
	}
	switch kind := asString(v["type"]); kind {
	case "joined":
		c.checkJoined(room, model, asString(v["ref"]), modelPosition{epoch, asSeq(v["seq"])}, asSeq(v["first"]))
	case "error":
		c.checkRefused(asString(v["ref"]), asString(v["code"]))
	case "left":
		if !model.leaving {
			c.failf("%s got left of %s, and did not leave", c.name, room)
		}
		model.joined, model.leaving = false, false
	case "message", "gap", "signal":
		if !model.joined {
			c.failf("%s got a %s of %s, which it is not in", c.name, kind, room)
			return
		}
		switch kind {
		case "message":
			c.checkMessage(room, model, modelPosition{epoch, asSeq(v["seq"])}, asString(v["id"]))
		case "gap":
			c.checkGap(room, model, epoch, asSeq(v["from"]), asSeq(v["to"]), asString(v["reason"]))
		}
	}
}

// checkJoined checks the answer to a join. The client is then at the position
// that it requested, or at the head.
func (c *simClient) checkJoined(room message.Room, model *roomModel, ref string, head modelPosition, first message.Seq) {
	j := c.pendingJoins[ref]
	if j == nil || ref != model.joinRef || j.replaced {
		c.failf("%s got joined of %s for %q, which is not a pending join", c.name, room, ref)
		return
	}
	delete(c.pendingJoins, ref)
	if most, known := c.log.head(head.epoch, room); !known || head.seq > most || first > head.seq+1 {
		c.failf("%s joined %s with head %v and first %d, which the log never had", c.name, room, head, first)
	}
	model.joined, model.joinRef, model.at, model.ahead = true, "", j.from, j.ahead
	switch {
	case j.fromNow:
		model.at = head
	case model.at.epoch == "":
		model.at.epoch = head.epoch
	}
	model.atPing, model.confirmed = modelPosition{}, model.at
	if model.at.epoch == head.epoch && model.at.seq > head.seq && !model.ahead {
		c.failf("%s joined %s after %v, and joined reports the head %v", c.name, room, model.at, head)
	}
}

// checkRefused checks an error that answers a join.
func (c *simClient) checkRefused(ref, code string) {
	j := c.pendingJoins[ref]
	switch {
	case j == nil:
		c.failf("%s got an error for %q, which is not a pending join", c.name, ref)
		return
	case j.replaced && code == "invalid":
	case code == "unavailable" && c.inGrace():
	default:
		c.failf("%s was refused %s without a fault: %s", c.name, j.room, code)
	}
	delete(c.pendingJoins, ref)
	if model := c.rooms[j.room]; model.joinRef == ref {
		model.joined, model.joinRef = false, "" // the earlier membership ended first
	}
}

// checkMessage checks that a message is the next one, and the one that the log
// has there.
func (c *simClient) checkMessage(room message.Room, model *roomModel, got modelPosition, id string) {
	if want := (modelPosition{model.at.epoch, model.at.seq + 1}); got != want {
		c.failf("%s got %v of %s, want %v", c.name, got, room, want)
		return
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	stored := c.log.messages[got.epoch][room]
	if int(got.seq) > len(stored) || stored[got.seq-1].ID != id {
		c.failf("%s got %v of %s as %s, which the log does not have", c.name, got, room, id)
		return
	}
	model.at, model.ahead = got, false
}

// checkGap checks that the messages of a gap cannot be had any more.
func (c *simClient) checkGap(room message.Room, model *roomModel, epoch message.Epoch, from, to message.Seq, reason string) {
	most, known := c.log.head(epoch, room)
	switch {
	case !known || to > most:
		c.failf("%s got a gap of %s up to %d in %s, which the log never reached", c.name, room, to, epoch)
	case reason == "trimmed" && (epoch != model.at.epoch || from != model.at.seq+1 || to < from || to >= c.log.oldest(epoch, room)):
		c.failf("%s at %v of %s got a gap of %d to %d in %s, which are not the trimmed messages", c.name, model.at, room, from, to, epoch)
	case reason == "epoch" && (from != 1 || !c.isVoid(model, epoch)):
		c.failf("%s at %v of %s got a gap of %d to %d in %s, but its position is valid", c.name, model.at, room, from, to, epoch)
	}
	model.at, model.ahead = modelPosition{epoch, to}, false
}

// isVoid reports whether the client's position is invalid in an epoch.
func (c *simClient) isVoid(model *roomModel, epoch message.Epoch) bool {
	if model.at.epoch == epoch {
		return model.ahead
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	was := slices.Index(c.log.epochs, model.at.epoch) // -1: an epoch that never was
	return was < slices.Index(c.log.epochs, epoch)
}

// missing describes what the client has not received, "" if it has everything.
func (c *simClient) missing() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, room := range slices.Sorted(maps.Keys(c.rooms)) {
		if ref := c.rooms[room].joinRef; ref != "" {
			return fmt.Sprintf("%s has no answer to its join %s of %s", c.name, ref, room)
		}
	}
	c.log.mu.Lock()
	epoch := c.log.epoch()
	c.log.mu.Unlock()
	for _, room := range slices.Sorted(maps.Keys(c.rooms)) {
		model := c.rooms[room]
		head, _ := c.log.head(epoch, room)
		if want := (modelPosition{epoch, head}); model.joined && model.at != want {
			return fmt.Sprintf("%s is at %v of %s, the log at %v", c.name, model.at, room, want)
		}
	}
	if len(c.pendingJoins) > 0 {
		return fmt.Sprintf("%s has no answer to %d replaced joins", c.name, len(c.pendingJoins))
	}
	return ""
}
