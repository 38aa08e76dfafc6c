package client

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// A lane holds a room's publications back after the service could not say
// whether one of them is stored: only the oldest, the probe, is resent; the
// others follow once it was answered, so that their order stays.
type lane struct {
	probe *publication   // under way, or nil
	queue []*publication // by order
	timer *time.Timer    // until the next probe, or nil
}

// hold puts p in its room's lane and sees to it that the oldest there is
// resent after wait. The caller holds mu.
func (c *Client) hold(p *publication, wait time.Duration) {
	room := p.key.room
	l := c.lanes[room]
	if l == nil {
		l = &lane{}
		c.lanes[room] = l
	}
	if l.probe == p {
		l.probe = nil
	}
	p.link = nil
	l.add(p)
	if l.probe == nil && l.timer == nil {
		l.timer = time.AfterFunc(wait, func() { c.probeAgain(room, l) })
	}
}

// add keeps the queue in order of the calls.
func (l *lane) add(p *publication) {
	at, found := slices.BinarySearchFunc(l.queue, p, byOrder)
	if !found {
		l.queue = slices.Insert(l.queue, at, p)
	}
}

func (c *Client) probeAgain(room message.Room, l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[room] != l {
		return
	}
	l.timer = nil
	if c.link != nil {
		c.sendProbe(l)
	}
}

// sendProbe resends the oldest of a lane; the caller holds mu.
func (c *Client) sendProbe(l *lane) {
	l.probe, l.queue = l.queue[0], l.queue[1:]
	c.transmit(l.probe)
}

// open lets a lane's publications go on.
func (c *Client) open(room message.Room, l *lane) {
	delete(c.lanes, room)
	if l.timer != nil {
		l.timer.Stop()
	}
	if c.link == nil {
		return // begin sends them
	}
	for _, p := range l.queue {
		c.transmit(p)
	}
}
