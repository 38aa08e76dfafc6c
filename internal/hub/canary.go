package hub

import (
	"bytes"
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

const (
	canaryRoomPrefix = "_canary."
	// canaryPublishTimeout bounds one publish: over the log's own bound, so that at
	// most one is under way.
	canaryPublishTimeout = 15 * time.Second
)

// A canary publishes in a room of the node's own, through the log, as any
// client would, and listens to it as a member. What does not come back tells
// that delivery is dead, though every part of the node may say that it is well.
// Its two legs are told apart: a message that was committed here reaches local
// members without the broker, so only the echo tells of a dead subscription.
// It is an Outlet. Safe for concurrent use.
type canary struct {
	hub      *Hub
	room     message.Room
	idPrefix string // of the ids of this process
	client   *Client
	local    leg
	broker   leg
}

// A leg is one way that a canary's message comes back.
type leg struct {
	name         string
	newestSentAt atomic.Int64 // when the newest that came back was sent, Unix µs
	arrived      atomic.Bool  // one has come back
}

// age is how long ago the newest message was sent that has come back.
func (l *leg) age(now time.Time) time.Duration {
	return max(0, now.Sub(time.UnixMicro(l.newestSentAt.Load())))
}

func newCanary(h *Hub, node string) *canary {
	c := &canary{
		hub:      h,
		room:     message.Room(canaryRoomPrefix + node),
		idPrefix: strconv.FormatUint(h.bootID, 36) + "-canary-",
		local:    leg{name: "local"},
		broker:   leg{name: "broker"},
	}
	c.client = h.NewClient(c, "")
	now := time.Now().UnixMicro()
	c.local.newestSentAt.Store(now)
	c.broker.newestSentAt.Store(now)
	return c
}

// loop sends a canary each interval, until the hub closes.
func (c *canary) loop() {
	defer c.client.Close(true)
	tick := time.NewTicker(c.hub.cfg.CanaryInterval)
	defer tick.Stop()
	for {
		if c.client.RoomCount() == 0 {
			// At first, and after a join that the log was too late for.
			_ = c.client.join(&protocol.Request{Type: protocol.TypeJoin, Room: c.room})
		}
		c.send()
		select {
		case <-c.hub.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// send publishes one message. Why it failed is the log's to tell; that it did
// shows as age.
func (c *canary) send() {
	ctx, cancel := context.WithTimeout(c.hub.ctx, canaryPublishTimeout)
	defer cancel()
	at := strconv.FormatInt(time.Now().UnixMicro(), 10)
	_, _ = c.hub.Publish(ctx, message.Draft{Room: c.room, ID: c.idPrefix + at, Data: []byte(at)})
}

// recordArrival notes on a leg the newest canary that frames hold, if any: its id tells
// when it was sent.
func (c *canary) recordArrival(l *leg, frames []byte) {
	i := bytes.LastIndex(frames, []byte(c.idPrefix))
	if i < 0 {
		return // joined, an error, or what an earlier process of this name sent
	}
	digits := frames[i+len(c.idPrefix):]
	if n := bytes.IndexByte(digits, '"'); n >= 0 {
		digits = digits[:n]
	}
	sent, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil {
		return
	}
	for before := l.newestSentAt.Load(); sent > before; before = l.newestSentAt.Load() {
		if l.newestSentAt.CompareAndSwap(before, sent) {
			l.arrived.Store(true)
			c.hub.metrics.canary.WithLabelValues(l.name).Observe(max(0, time.Since(time.UnixMicro(sent)).Seconds()))
		}
	}
}

// recordEcho takes a payload of this node that the broker brought back.
func (c *canary) recordEcho(p *payload) {
	for i := range p.frames {
		c.recordArrival(&c.broker, p.frames[i].frame)
	}
}

// Send implements Outlet.
func (c *canary) Send(f protocol.Frame) bool {
	c.recordArrival(&c.local, f)
	return true
}

// Queue implements Outlet.
func (c *canary) Queue(f protocol.Frame) bool { return c.Send(f) }

// Flush implements Outlet.
func (c *canary) Flush() {}

// Flushed implements Outlet.
func (c *canary) Flushed(context.Context) error { return nil }

// A DeliveryStatus tells how the canary does.
type DeliveryStatus struct {
	// Local is how old the newest canary is that a member here has got,
	// Broker the same for what the broker brought back.
	Local, Broker time.Duration
	// LocalStale and BrokerStale say that it is older than it may be.
	LocalStale, BrokerStale bool
	// Verified says that a member here has got one at all.
	Verified bool
}

// Delivery tells whether messages that are published here come through. Without
// a node's name in the Config there is no canary, and nothing is ever stale.
func (h *Hub) Delivery() DeliveryStatus {
	if h.canary == nil {
		return DeliveryStatus{Verified: true}
	}
	now := time.Now()
	d := DeliveryStatus{Local: h.canary.local.age(now), Broker: h.canary.broker.age(now), Verified: h.canary.local.arrived.Load()}
	d.LocalStale = d.Local > h.cfg.CanaryStale
	d.BrokerStale = d.Broker > h.cfg.CanaryStale
	return d
}
