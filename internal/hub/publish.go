package hub

import (
	"bytes"
	"context"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// maxSignalAge is how much longer than others of its sender a signal may travel
// before it is dropped.
const maxSignalAge = 10 * time.Second

// A pendingPublish is a publication in the log and the publisher that waits for
// its outcome.
type pendingPublish struct {
	message.Publication
	hub     *Hub
	started time.Time
	// Either client is set, which gets an ack with ref, or done, which is
	// closed.
	client *Client
	ref    protocol.Ref
	done   chan struct{}
}

// publish hands a draft to the log as soon as the client has a free slot. The
// wait is bounded, because every append completes within the log's own timeout.
func (c *Client) publish(r *protocol.Request) {
	if c.publishSlots == nil {
		c.publishSlots = make(chan struct{}, c.hub.cfg.MaxInflight)
	}
	c.publishSlots <- struct{}{}
	p := c.hub.newPendingPublish(message.Draft{
		Room: r.Room,
		ID:   r.ID,
		From: c.user,
		Data: bytes.Clone(r.Data), // the reader reuses its buffer
	})
	p.client, p.ref = c, r.Ref
	c.hub.cfg.Log.Append(&p.Publication)
}

// Publish stores a draft and waits for the outcome until ctx ends; then the
// outcome is unknown. An error of the log is also in the publication's Err.
func (h *Hub) Publish(ctx context.Context, d message.Draft) (*message.Publication, error) {
	p := h.newPendingPublish(d)
	p.done = make(chan struct{})
	h.cfg.Log.Append(&p.Publication)
	select {
	case <-p.done:
		return &p.Publication, p.Err
	case <-ctx.Done():
		return nil, message.ErrUnavailable
	}
}

// newPendingPublish returns a publication that leads Completed back to its
// publisher.
func (h *Hub) newPendingPublish(d message.Draft) *pendingPublish {
	if d.ID == "" {
		// An id before the append makes the log's own retry safe.
		d.ID = h.newID()
	}
	p := &pendingPublish{hub: h, Publication: message.Publication{Draft: d}, started: time.Now()}
	p.Opaque = p
	return p
}

// Completed receives the outcome of one room's publications of one batch, in
// seq order, from the append worker. It queues the acks, then delivers to the
// members on this node, then broadcasts to the other nodes. It does not block.
// [Hub.PublishBatch] answers its own publisher, so its publications are no
// pendingPublish.
func (h *Hub) Completed(batch []*message.Publication) {
	now := time.Now()
	p := payload{kind: kindMessages, origin: h.bootID, sentAt: now.UnixMicro()}
	for _, pub := range batch {
		if pending, ok := pub.Opaque.(*pendingPublish); ok {
			pending.answer(now)
		}
		if pub.Err == nil {
			p.add(pub)
		}
	}
	if len(p.frames) > 0 {
		h.deliverAndBroadcast(batch[0].Room, &p)
	}
}

// deliverAndBroadcast sends committed publications of one room to the members on this node
// and to the other nodes. It sends duplicates again, too: that repairs delivery
// after a node died between commit and broadcast.
func (h *Hub) deliverAndBroadcast(room message.Room, p *payload) {
	if t := h.lookup(room); t != nil {
		for i := range p.frames {
			t.receive(p.frames[i])
		}
	}
	h.cfg.Broker.Publish(room, p.encode())
}

// answer sends the outcome to the publisher. The ack leaves in one write with
// the message if the publisher is a member, otherwise with the next run of
// ackLoop.
func (p *pendingPublish) answer(now time.Time) {
	if p.done != nil {
		close(p.done)
		return
	}
	var f protocol.Frame
	if p.Err != nil {
		f = p.hub.clientError(p.Err).Encode(p.ref, p.Room, p.ID)
	} else {
		f = protocol.Ack(p.ref, &p.Publication)
		p.hub.metrics.publish.Observe(now.Sub(p.started).Seconds())
	}
	p.client.out.Queue(f)
	<-p.client.publishSlots
	// At most MaxInflight entries per client.
	p.hub.clientsWithAcks.put(p.client, 0, 0, p.hub.ackLoop)
}

// ackLoop writes queued acks, so that the append worker does not wait for
// sockets.
func (h *Hub) ackLoop() {
	for {
		clients, ok := h.clientsWithAcks.dequeueAll()
		if !ok {
			return
		}
		for _, c := range clients {
			c.out.Flush()
		}
	}
}

// Signal sends a signal to the current members of a room on every node. It does
// not block and does not keep data.
func (h *Hub) Signal(room message.Room, from string, data []byte) { h.signal(room, from, data) }

// signal sends a signal to the current members of a room on every node.
func (h *Hub) signal(room message.Room, from string, data []byte) {
	now := h.signalClock.now()
	f := roomFrame{frame: protocol.Signal(room, from, data), createdAt: now}
	if t := h.lookup(room); t != nil {
		t.receive(f)
	}
	p := payload{kind: kindSignal, origin: h.bootID, sentAt: now, frames: []roomFrame{f}}
	h.cfg.Broker.Publish(room, p.encode())
}

// Receive handles a payload from the broker. It only appends to an inbox, so
// the broker's reader never waits.
func (h *Hub) Receive(room message.Room, b []byte) {
	p, err := decodePayload(b)
	if err != nil {
		h.metrics.malformed.Inc()
		return
	}
	if p.origin == h.bootID {
		if h.canary != nil && room == h.canary.room {
			h.canary.recordEcho(&p)
		}
		return // our own, delivered before it was broadcast
	}
	if p.kind == kindSignal && h.signalAges.age(p.origin, p.sentAt) > maxSignalAge {
		h.metrics.dropped.WithLabelValues(dropSignal).Inc()
		return
	}
	t := h.lookup(room)
	if t == nil {
		return
	}
	for i := range p.frames {
		t.receive(p.frames[i])
	}
}
