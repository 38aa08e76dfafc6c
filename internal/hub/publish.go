package hub

import (
	"bytes"
	"context"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// maxSignalAge is how old a signal may get on its way between nodes.
const maxSignalAge = 10 * time.Second

// A pendingPublish is a publication and who waits for it.
type pendingPublish struct {
	message.Publication
	hub     *Hub
	started time.Time
	// Either client, which gets ref on its ack, or done is set.
	client *Client
	ref    protocol.Ref
	done   chan struct{}
}

// publish hands a draft to the log, once the client has a free slot. Every
// append settles within the log's own bound, so the wait is bounded too.
func (c *Client) publish(r *protocol.Request) {
	if c.publishSlots == nil {
		c.publishSlots = make(chan struct{}, c.hub.cfg.MaxInflight)
	}
	c.publishSlots <- struct{}{}
	p := c.hub.newPendingPublish(message.Draft{
		Room: r.Room,
		ID:   r.ID,
		From: c.user,
		Data: bytes.Clone(r.Data), // the reader uses its buffer again
	})
	p.client, p.ref = c, r.Ref
	c.hub.cfg.Log.Append(&p.Publication)
}

// Publish stores a draft and waits for the outcome, at most until ctx ends;
// then the outcome is unknown. The error may also be in the publication's Err.
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

// newPendingPublish makes a publication that finds its publisher again when it settles.
func (h *Hub) newPendingPublish(d message.Draft) *pendingPublish {
	if d.ID == "" {
		// Named before it is stored, so that the log's own retry is safe.
		d.ID = h.newID()
	}
	p := &pendingPublish{hub: h, Publication: message.Publication{Draft: d}, started: time.Now()}
	p.Opaque = p
	return p
}

// Completed takes the outcome of one room's publications of one batch, in the
// order of their seq, from the log's committer. Acks are queued first, then
// members here get the messages, then other nodes. It does not block. Those of
// [Hub.PublishBatch] have no ticket: their publisher is answered by it.
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
		h.deliver(batch[0].Room, &p)
	}
}

// answer tells the publisher. An ack leaves with the message itself where the
// publisher is a member, else with the next turn of ackLoop.
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
	// Bounded by MaxInflight a client.
	p.hub.acks.put(p.client, 0, 0, p.hub.ackLoop)
}

// ackLoop writes out queued acks, off the committer's goroutine.
func (h *Hub) ackLoop() {
	for {
		clients, ok := h.acks.dequeueAll()
		if !ok {
			return
		}
		for _, c := range clients {
			c.out.Flush()
		}
	}
}

// signal hands an ephemeral event to who is in the room now, on any node.
func (h *Hub) signal(room message.Room, from string, data []byte) {
	now := time.Now().UnixMicro()
	e := roomFrame{frame: protocol.Signal(room, from, data), createdAt: now}
	if t := h.lookup(room); t != nil {
		t.receive(e)
	}
	p := payload{kind: kindSignal, origin: h.bootID, sentAt: now, frames: []roomFrame{e}}
	h.cfg.Broker.Publish(room, p.encode())
}

// Receive takes a payload from the broker; it only appends to an inbox.
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
		return // our own, delivered before it was sent
	}
	if p.kind == kindSignal && time.Now().UnixMicro()-p.sentAt > maxSignalAge.Microseconds() {
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
