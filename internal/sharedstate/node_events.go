package sharedstate

import (
	"context"
	"encoding/json"
	"time"

	"switchyard/internal/message"
)

// maxEnvelope bounds the payload of an envelope that is decoded, in bytes.
const maxEnvelope = 1 << 20

// An outgoingEvent is an event that waits to be sent.
type outgoingEvent struct {
	to    string // a node, or "" for all others
	event message.NodeEvent
}

// A wireEvent is the encoded form of an event. Nodes of several releases share
// it: a node ignores fields and kinds that it does not know.
type wireEvent struct {
	Kind       message.NodeEventKind `json:"k"`
	Session    message.SessionID     `json:"s,omitempty"`
	Generation int64                 `json:"g,omitempty"`
	User       string                `json:"u,omitempty"`
	ForMS      int64                 `json:"f,omitempty"`
	Rooms      []message.Room        `json:"r,omitempty"`
}

// A wireEnvelope is the encoded payload of an envelope. One with an epoch, and without
// events, is an announcement.
type wireEnvelope struct {
	From   string        `json:"from"`
	Events []wireEvent   `json:"notices"`
	Epoch  message.Epoch `json:"epoch,omitempty"`
}

// sendEvent sends an event to a node, or to all nodes if to is "". This node gets
// its own events at once, not by pub/sub. It never blocks.
func (n *Node) sendEvent(to string, event message.NodeEvent) {
	event.Node = n.cfg.Node
	if to == "" || to == n.cfg.Node {
		n.notify(event)
	}
	if to != n.cfg.Node && !n.outbox.add(outgoingEvent{to: to, event: event}) {
		n.metrics.drop(dropEventsFull, 1)
	}
}

// sendLoop sends the queued events; those of a batch to the same node share an
// envelope.
func (n *Node) sendLoop(ctx context.Context) {
	n.outbox.sendLoop(ctx, func(ctx context.Context, batch []outgoingEvent) {
		if err := n.backend.send(ctx, n.envelopes(batch)); err != nil {
			n.metrics.drop(dropEventLost, len(batch))
		}
	})
}

// envelopes encodes a batch: one envelope for each receiver, with its events in
// order.
func (n *Node) envelopes(batch []outgoingEvent) []envelope {
	var receivers []string // in the order of their first events
	events := make(map[string][]wireEvent)
	for _, out := range batch {
		if _, known := events[out.to]; !known {
			receivers = append(receivers, out.to)
		}
		events[out.to] = append(events[out.to], wireEvent{
			Kind: out.event.Kind, Session: out.event.Session, Generation: out.event.Generation,
			User: out.event.User, ForMS: out.event.BanDuration.Milliseconds(), Rooms: out.event.Rooms,
		})
	}
	envelopes := make([]envelope, len(receivers))
	for i, to := range receivers {
		payload, err := json.Marshal(wireEnvelope{From: n.cfg.Node, Events: events[to]})
		if err != nil {
			panic(err) // not possible: strings and numbers only
		}
		envelopes[i] = envelope{to: to, payload: payload}
	}
	return envelopes
}

// listenLoop receives the events of other nodes.
func (n *Node) listenLoop(ctx context.Context) {
	n.backend.listenLoop(ctx, n.cfg.Node, n.receive, func() {
		n.notify(message.NodeEvent{Kind: message.EventMissed, Node: n.cfg.Node})
	})
}

// receive decodes an envelope and notifies this node of its events.
func (n *Node) receive(payload []byte) {
	var envelope wireEnvelope
	if len(payload) > maxEnvelope || json.Unmarshal(payload, &envelope) != nil {
		n.metrics.drop(dropEventMalformed, 1)
		return
	}
	if envelope.From == n.cfg.Node {
		return // sendEvent has notified this node already
	}
	if envelope.Epoch != "" {
		n.checkLog(envelope.From, envelope.Epoch)
		return // the node may share the channels only, and not the keys
	}
	n.nodes.markSeen(envelope.From)
	for _, w := range envelope.Events {
		d := time.Duration(min(w.ForMS, maxBanDuration.Milliseconds())) * time.Millisecond
		if w.Kind == message.EventBanned {
			n.bans.add(w.User, d)
		}
		n.notify(message.NodeEvent{
			Kind: w.Kind, Node: envelope.From, Session: w.Session, Generation: w.Generation,
			User: w.User, BanDuration: d, Rooms: w.Rooms,
		})
	}
}
