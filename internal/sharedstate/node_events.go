package sharedstate

import (
	"context"
	"encoding/json"
	"time"

	"switchyard/internal/message"
)

// maxEnvelope bounds what is read of one letter, in bytes.
const maxEnvelope = 1 << 20

// outgoingEvent is a notice on its way to a node, or to all others.
type outgoingEvent struct {
	to    string
	event message.NodeEvent
}

// A wireEvent is a notice as it travels: fields that a node does not know are
// ignored, and so are kinds.
type wireEvent struct {
	Kind       message.NodeEventKind `json:"k"`
	Session    message.SessionID     `json:"s,omitempty"`
	Generation int64                 `json:"g,omitempty"`
	User       string                `json:"u,omitempty"`
	ForMS      int64                 `json:"f,omitempty"`
	Rooms      []message.Room        `json:"r,omitempty"`
}

// A wireEnvelope is what is told at once.
type wireEnvelope struct {
	From   string      `json:"from"`
	Events []wireEvent `json:"notices"`
}

// sendEvent sends a notice to a node, or to all others and this one where to is "".
// It never blocks.
func (n *Node) sendEvent(to string, event message.NodeEvent) {
	event.Node = n.cfg.Node
	if to == "" || to == n.cfg.Node {
		n.notify(event)
	}
	if to != n.cfg.Node && !n.outbox.add(outgoingEvent{to: to, event: event}) {
		n.metrics.drop(dropEventsFull, 1)
	}
}

// sendLoop sends notices, all that wait for the same node in one letter.
func (n *Node) sendLoop(ctx context.Context) {
	n.outbox.drainLoop(ctx, func(ctx context.Context, batch []outgoingEvent) {
		if err := n.backend.send(ctx, n.envelopes(batch)); err != nil {
			n.metrics.drop(dropEventLost, len(batch))
		}
	})
}

func (n *Node) envelopes(batch []outgoingEvent) []envelope {
	var order []string
	events := make(map[string][]wireEvent)
	for _, p := range batch {
		if _, known := events[p.to]; !known {
			order = append(order, p.to)
		}
		events[p.to] = append(events[p.to], wireEvent{
			Kind: p.event.Kind, Session: p.event.Session, Generation: p.event.Generation,
			User: p.event.User, ForMS: p.event.BanDuration.Milliseconds(), Rooms: p.event.Rooms,
		})
	}
	envelopes := make([]envelope, len(order))
	for i, to := range order {
		payload, err := json.Marshal(wireEnvelope{From: n.cfg.Node, Events: events[to]})
		if err != nil {
			panic(err) // strings and numbers only
		}
		envelopes[i] = envelope{to: to, payload: payload}
	}
	return envelopes
}

// listenLoop hands on what other nodes tell.
func (n *Node) listenLoop(ctx context.Context) {
	n.backend.listenLoop(ctx, n.cfg.Node, n.receive, func() {
		n.notify(message.NodeEvent{Kind: message.EventMissed, Node: n.cfg.Node})
	})
}

func (n *Node) receive(payload []byte) {
	var l wireEnvelope
	if len(payload) > maxEnvelope || json.Unmarshal(payload, &l) != nil {
		n.metrics.drop(dropEventMalformed, 1)
		return
	}
	if l.From == n.cfg.Node {
		return // its own, told at once when it was sent
	}
	n.nodes.markSeen(l.From)
	for _, w := range l.Events {
		d := time.Duration(min(w.ForMS, maxBanDuration.Milliseconds())) * time.Millisecond
		if w.Kind == message.EventBanned {
			n.bans.add(w.User, d)
		}
		n.notify(message.NodeEvent{
			Kind: w.Kind, Node: l.From, Session: w.Session, Generation: w.Generation,
			User: w.User, BanDuration: d, Rooms: w.Rooms,
		})
	}
}
