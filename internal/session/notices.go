package session

import (
	"context"
	"encoding/json"
	"time"

	"switchyard/internal/message"
)

// maxLetter bounds what is read of one letter, in bytes.
const maxLetter = 1 << 20

// posted is a notice on its way to a node, or to all others.
type posted struct {
	to     string
	notice message.Notice
}

// A wireNotice is a notice as it travels: fields that a node does not know are
// ignored, and so are kinds.
type wireNotice struct {
	Kind       message.NoticeKind `json:"k"`
	Session    message.SessionID  `json:"s,omitempty"`
	Generation int64              `json:"g,omitempty"`
	User       string             `json:"u,omitempty"`
	ForMS      int64              `json:"f,omitempty"`
	Rooms      []message.Room     `json:"r,omitempty"`
}

// A wireLetter is what is told at once.
type wireLetter struct {
	From    string       `json:"from"`
	Notices []wireNotice `json:"notices"`
}

// tell sends a notice to a node, or to all others and this one where to is "".
// It never blocks.
func (n *Node) tell(to string, notice message.Notice) {
	notice.Node = n.cfg.Node
	if to == "" || to == n.cfg.Node {
		n.notify(notice)
	}
	if to != n.cfg.Node && !n.outbox.add(posted{to: to, notice: notice}) {
		n.metrics.drop(dropNotices, 1)
	}
}

// sendLoop sends notices, all that wait for the same node in one letter.
func (n *Node) sendLoop(ctx context.Context) {
	n.outbox.drainLoop(ctx, func(ctx context.Context, batch []posted) {
		if err := n.space.send(ctx, n.letters(batch)); err != nil {
			n.metrics.drop(dropNotice, len(batch))
		}
	})
}

func (n *Node) letters(batch []posted) []letter {
	var order []string
	notices := make(map[string][]wireNotice)
	for _, p := range batch {
		if _, known := notices[p.to]; !known {
			order = append(order, p.to)
		}
		notices[p.to] = append(notices[p.to], wireNotice{
			Kind: p.notice.Kind, Session: p.notice.Session, Generation: p.notice.Generation,
			User: p.notice.User, ForMS: p.notice.For.Milliseconds(), Rooms: p.notice.Rooms,
		})
	}
	letters := make([]letter, len(order))
	for i, to := range order {
		payload, err := json.Marshal(wireLetter{From: n.cfg.Node, Notices: notices[to]})
		if err != nil {
			panic(err) // strings and numbers only
		}
		letters[i] = letter{to: to, payload: payload}
	}
	return letters
}

// listenLoop hands on what other nodes tell.
func (n *Node) listenLoop(ctx context.Context) {
	n.space.listenLoop(ctx, n.cfg.Node, n.receive, func() {
		n.notify(message.Notice{Kind: message.NoticeMissed, Node: n.cfg.Node})
	})
}

func (n *Node) receive(payload []byte) {
	var l wireLetter
	if len(payload) > maxLetter || json.Unmarshal(payload, &l) != nil {
		n.metrics.drop(dropGarbled, 1)
		return
	}
	if l.From == n.cfg.Node {
		return // its own, told at once when it was sent
	}
	n.fleet.sight(l.From)
	for _, w := range l.Notices {
		d := time.Duration(min(w.ForMS, maxBar.Milliseconds())) * time.Millisecond
		if w.Kind == message.NoticeRemoved {
			n.bars.learn(w.User, d)
		}
		n.notify(message.Notice{
			Kind: w.Kind, Node: l.From, Session: w.Session, Generation: w.Generation,
			User: w.User, For: d, Rooms: w.Rooms,
		})
	}
}
