package client

import (
	"context"
	"errors"
	"time"
)

// joinTimeout is how long a move waits for the next room to be joined on the
// second connection, until it takes that for broken.
const joinTimeout = 10 * time.Second

var errNotThere = errors.New("moved to what is to be avoided, or could not join there")

// A moveOrder is what the service asked for, and when.
type moveOrder struct {
	avoid  Avoid
	reason string
	slot   time.Time // not before
	ends   time.Time // off after it, if the first connection lives still
}

// A move is on its way to a second connection, on a goroutine of its own. The
// first one serves meanwhile.
type move struct {
	// Static.
	ctx    context.Context // ends with the client, or when the move is off
	cancel context.CancelFunc
	before <-chan struct{} // closed when the move before this one is done
	done   chan struct{}   // closed by moveLoop as its last act

	// settled gets a token when all rooms may be joined on the second
	// connection, progress when one more is.
	settled, progress chan struct{}

	// Guarded by Client.mu.
	order  *moveOrder
	trying bool // a connection is being made, or settles in
}

// avoids says whether a connection is one to get away from.
func (a Avoid) avoids(w Welcome) bool {
	return (a.Node != "" && a.Node == w.Node) || (a.Deployment != "" && a.Deployment == w.Deployment)
}

// handleMove heeds the connection that counts. What the second one asks for is
// kept until it does.
func (c *Client) handleMove(l *link, f *serverFrame) {
	now := time.Now()
	order := &moveOrder{avoid: f.Avoid, reason: f.Reason, slot: now.Add(millis(f.After)), ends: now.Add(millis(f.Deadline))}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch l {
	case c.link:
		c.plan(order)
	case c.next:
		l.asked = order
	}
}

// plan makes order the move: only the last one counts. A try under way goes on
// where the same is to be avoided. The caller holds mu.
func (c *Client) plan(order *moveOrder) {
	if c.closing {
		return
	}
	if m := c.move; m != nil && m.trying && m.order.avoid == order.avoid {
		m.order = order
		return
	}
	c.callOff()
	m := &move{
		order: order, before: c.moved, done: make(chan struct{}),
		settled: make(chan struct{}, 1), progress: make(chan struct{}, 1),
	}
	m.ctx, m.cancel = context.WithCancel(c.ctx)
	c.move, c.moved = m, m.done
	c.running.Go(func() { c.moveLoop(m) })
}

// callOff ends the move, if there is one. The caller holds mu.
func (c *Client) callOff() {
	if c.move != nil {
		c.move.cancel()
		c.move = nil
	}
}

// moveLoop tries until the client is elsewhere, or the move is off.
func (c *Client) moveLoop(m *move) {
	defer close(m.done)
	defer m.cancel()
	if m.before != nil {
		<-m.before // there are never more than two connections
	}
	pace := pacer{random: c.opts.random}
	for c.awaitSlot(m) {
		l, end := c.connect(m.ctx)
		if l != nil {
			if c.arrive(m, l) {
				return
			}
			end = ending{code: codeAbnormal, err: errNotThere}
		}
		if c.putOff(m, pace.next(backOff, end.code, 0, time.Now())) {
			c.running.Go(func() { c.carryOnLoop(nil, end) })
			return
		}
	}
}

// awaitSlot waits for the time to try. False says that the move is off.
func (c *Client) awaitSlot(m *move) bool {
	c.mu.Lock()
	slot, ends := m.order.slot, m.order.ends
	c.mu.Unlock()
	at := slot
	if ends.Before(slot) {
		at = ends
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.move != m || c.closing {
		return false
	}
	if m.trying = !slot.After(ends); !m.trying {
		c.opts.Logger.Debug("the move is off", "reason", m.order.reason)
		c.callOff()
	}
	return m.trying
}

// putOff sets the time of the next try. True says that the first connection has
// ended meanwhile, and with it the move: somebody has to carry on.
func (c *Client) putOff(m *move, wait time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.trying = false
	if c.move == m && c.link == nil {
		c.callOff()
		return true
	}
	c.attempt++
	if slot := time.Now().Add(wait); slot.After(m.order.slot) {
		m.order.slot = slot
	}
	return false
}

// arrive puts a new connection to use, as far as it is of any. True says that
// the move is over, one way or the other; false that another try is due.
func (c *Client) arrive(m *move, l *link) bool {
	c.mu.Lock()
	switch {
	case c.move != m || (c.closing && c.link != nil):
		c.mu.Unlock()
		l.sock.dismiss()
		return true
	case c.link == nil: // the first has ended, and anything is better than nothing
		c.callOff()
		c.report(l)
		c.mu.Unlock()
		c.begin(l)
		c.running.Go(func() { c.carryOnLoop(l, ending{}) })
		return true
	case m.order.avoid.avoids(l.welcome):
		c.mu.Unlock()
		l.sock.dismiss()
		return false
	}
	c.next, c.echoes = l, c.echoes.expect()
	c.report(l)
	for _, r := range c.rooms {
		if r.at.given {
			c.sendJoin(l, r)
		}
	}
	c.noteSeat()
	c.mu.Unlock()
	c.running.Go(func() { c.carryOnLoop(l, ending{}) })
	return c.settle(m, l)
}

// report tells a connection how long it took, for the sake of those who move
// after this client. The caller holds mu.
func (c *Client) report(l *link) {
	if c.welcome.Node == "" {
		return
	}
	l.sock.send(newRequest("moved", c.nextRef(), "").text("from", c.welcome.Node).
		number("handshake_ms", l.since.Sub(l.opened).Milliseconds()).end())
}

// settle waits until all rooms are joined on the second connection, which then
// takes the place of the first. It returns what arrive does.
func (c *Client) settle(m *move, l *link) bool {
	timer := time.NewTimer(joinTimeout)
	defer timer.Stop()
	for {
		select {
		case <-m.settled:
			if c.swap(m) {
				return true
			}
		case <-m.progress:
			timer.Reset(joinTimeout)
		case <-l.gone:
			return false
		case <-timer.C:
			if c.forgo(l) {
				return false
			}
		case <-m.ctx.Done():
			c.forgo(l)
			return true
		}
	}
}

// noteSeat tells the move that one more room is joined, or left, on the second
// connection. The caller holds mu.
func (c *Client) noteSeat() {
	if c.next == nil || c.move == nil {
		return
	}
	told := c.move.progress
	if c.seated() {
		told = c.move.settled
	}
	select {
	case told <- struct{}{}:
	default:
	}
}

// seated says whether all rooms are joined on the second connection. The caller
// holds mu and knows of one.
func (c *Client) seated() bool {
	for name := range c.rooms {
		if s := c.next.seats[name]; s == nil || !s.live {
			return false
		}
	}
	return true
}

// swap lets go of the first connection if the second can do without it.
func (c *Client) swap(m *move) bool {
	c.turn.Lock()
	c.mu.Lock()
	if c.move != m || c.next == nil || !c.seated() {
		c.mu.Unlock()
		c.turn.Unlock()
		return false
	}
	first := c.link
	event, o := c.promote()
	c.mu.Unlock()
	o.tell()
	c.opts.OnMoved(event)
	c.turn.Unlock()
	first.sock.goodbye(codeNormal)
	return true
}

// promote makes the second connection the one that counts. The caller holds mu
// and turn, and tells what is returned.
func (c *Client) promote() (MovedEvent, outcomes) {
	l := c.next
	event := MovedEvent{From: c.welcome, To: l.welcome, Reason: c.move.order.reason, Took: time.Since(l.opened)}
	if c.link.refresh != nil {
		c.link.refresh.Stop()
	}
	c.next = nil
	c.callOff()
	c.echoes.fade()
	return event, c.attach(l)
}

// forgo closes the second connection, unless it is that no longer.
func (c *Client) forgo(l *link) bool {
	c.mu.Lock()
	if c.next != l {
		c.mu.Unlock()
		return false
	}
	c.next = nil
	c.echoes.fade()
	code := codeNotHere
	if c.closing { // then the session ends, which is this connection's by now
		code = codeNormal
	}
	c.mu.Unlock()
	l.sock.goodbye(code)
	return true
}
