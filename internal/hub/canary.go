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
	// canaryPublishTimeout bounds one publish. It is longer than the log's own
	// timeout, so that at most one publish is in flight.
	canaryPublishTimeout = 15 * time.Second
)

// A canary publishes to its node's own room through the log, as a client would,
// and receives the messages as a member. If they stop arriving, delivery is
// broken, even if every component reports that it is healthy. It measures two
// paths: a committed message reaches local members without the broker, so only
// the echo from the broker reveals a dead subscription. It implements Outlet
// and is safe for concurrent use.
type canary struct {
	hub      *Hub
	room     message.Room
	idPrefix string // of the ids of this process
	client   *Client
	local    canaryPath
	broker   canaryPath
	received chan struct{} // holds a token after any frame
}

// A canaryPath is one of the two paths, local and broker, by which a canary message
// arrives. The metrics call it leg.
type canaryPath struct {
	name         string
	newestSentAt atomic.Int64 // send time of the newest message that arrived, Unix µs
	arrived      atomic.Bool  // at least one has arrived
}

// age returns how long ago the newest message that arrived was sent.
func (p *canaryPath) age(now time.Time) time.Duration {
	return max(0, now.Sub(time.UnixMicro(p.newestSentAt.Load())))
}

// newCanary returns a canary that has not started. Both paths begin as if a
// message had just arrived.
func newCanary(h *Hub, node string) *canary {
	c := &canary{
		hub:      h,
		room:     message.Room(canaryRoomPrefix + node),
		idPrefix: strconv.FormatUint(h.bootID, 36) + "-canary-",
		local:    canaryPath{name: "local"},
		broker:   canaryPath{name: "broker"},
		received: make(chan struct{}, 1),
	}
	c.client = h.NewClient(c, "", "")
	now := time.Now().UnixMicro()
	c.local.newestSentAt.Store(now)
	c.broker.newestSentAt.Store(now)
	return c
}

// loop publishes one message per interval until the hub closes.
func (c *canary) loop() {
	defer c.client.Close(true)
	tick := time.NewTicker(c.hub.cfg.CanaryInterval)
	defer tick.Stop()
	for {
		if c.client.RoomCount() == 0 {
			// At the start, and after a join that the log did not serve in
			// time.
			select {
			case <-c.received: // of an earlier membership
			default:
			}
			_ = c.client.join(&protocol.Request{Type: protocol.TypeJoin, Room: c.room})
			// A message that is committed before the join is answered may be one that
			// this member does not get, and the node would be unready for an interval.
			select {
			case <-c.received:
			case <-c.hub.ctx.Done():
				return
			case <-tick.C:
			}
		}
		c.send()
		select {
		case <-c.hub.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// send publishes one message. It ignores an error: the log reports it itself, and
// the age of the newest canary message grows.
func (c *canary) send() {
	ctx, cancel := context.WithTimeout(c.hub.ctx, canaryPublishTimeout)
	defer cancel()
	at := strconv.FormatInt(time.Now().UnixMicro(), 10)
	_, _ = c.hub.Publish(ctx, message.Draft{Room: c.room, ID: c.idPrefix + at, Data: []byte(at)})
}

// recordArrival records the newest canary message in frames, if there is one.
// The id of a message holds its send time.
func (c *canary) recordArrival(l *canaryPath, frames []byte) {
	i := bytes.LastIndex(frames, []byte(c.idPrefix))
	if i < 0 {
		return // another frame, or a message of an earlier process with this node name
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

// recordEcho records a payload of this node that the broker returned.
func (c *canary) recordEcho(p *payload) {
	for i := range p.frames {
		c.recordArrival(&c.broker, p.frames[i].frame)
	}
}

// Send implements Outlet.
func (c *canary) Send(f protocol.Frame) bool {
	select {
	case c.received <- struct{}{}:
	default:
	}
	c.recordArrival(&c.local, f)
	return true
}

// Queue implements Outlet.
func (c *canary) Queue(f protocol.Frame) bool { return c.Send(f) }

// Flush implements Outlet.
func (c *canary) Flush() {}

// Flushed implements Outlet.
func (c *canary) Flushed(context.Context) error { return nil }

// SendAnswer implements Outlet.
func (c *canary) SendAnswer(f protocol.Frame) bool { return c.Send(f) }

// Answered implements Outlet.
func (c *canary) Answered(context.Context) error { return nil }

// A DeliveryStatus is the state of the canary.
type DeliveryStatus struct {
	// Local is the age of the newest canary message that a member on this node
	// received, Broker of the newest that the broker returned.
	Local, Broker time.Duration
	// LocalStale and BrokerStale report whether these are older than
	// Config.CanaryStale.
	LocalStale, BrokerStale bool
	// Verified reports whether a member on this node has received any canary
	// message.
	Verified bool
}

// Delivery reports whether messages that are published on this node arrive.
// Without Config.Node there is no canary, and nothing is ever stale.
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
