package sharedstate

import (
	"context"

	"switchyard/internal/message"
)

// New makes a session, on this node alone: the first Save keeps it. The secret
// is what the client resumes with, and not to be logged.
func (n *Node) New(user string) (secret string, s message.Session) {
	secret, id := newSecret()
	return secret, message.Session{ID: id, User: user, Generation: 1}
}

// Resume takes over the session that a secret belongs to, and tells the node
// that had it. It is false when there is no such session of this user; which
// of the two, nobody learns. An error wraps message.ErrSharedStateUnavailable when nobody could
// be asked; the client then gets a fresh session. It takes 500 ms
// at most, and as long again where many ask at once.
func (n *Node) Resume(ctx context.Context, secret, user string) (message.Session, bool, error) {
	id, ok := readSecret(secret)
	if !ok {
		n.metrics.resumes[resumeUnknown].Inc()
		return message.Session{}, false, nil
	}
	s, ok, err := n.backend.resume(ctx, id, user, n.cfg.Node)
	switch {
	case err != nil:
		n.metrics.resumes[resumeUnavailable].Inc()
		return message.Session{}, false, err
	case !ok:
		n.metrics.resumes[resumeUnknown].Inc()
		return message.Session{}, false, nil
	}
	n.metrics.resumes[resumeDone].Inc()
	if s.PreviousNode != n.cfg.Node {
		n.nodes.addReturned(s.PreviousNode, 1)
	}
	n.sendEvent(s.PreviousNode, message.NodeEvent{Kind: message.EventTakeover, Session: s.ID, Generation: s.Generation})
	return s, true, nil
}

// AnnounceLive tells the node that had the session before that its newer socket, this
// one, is live in all its rooms. For a fresh session it does nothing.
func (n *Node) AnnounceLive(s message.Session) {
	if s.PreviousNode != "" {
		n.sendEvent(s.PreviousNode, message.NodeEvent{Kind: message.EventSessionLive, Session: s.ID, Generation: s.Generation})
	}
}

// Save keeps sessions for another TTL, and returns a result for each. It is to
// be called for every session at least twice in a TTL, a few hundred at a time.
// When it fails the service goes on: who comes back then has a fresh session.
func (n *Node) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	results := n.backend.save(ctx, n.cfg.Node, batch)
	for _, r := range results {
		n.metrics.saves[r].Inc()
	}
	return results
}

// End forgets a session whose client said goodbye, soon. One that was taken
// over meanwhile stays. It never blocks.
func (n *Node) End(s message.Session) {
	if !n.endQueue.add(endedSession{id: s.ID, generation: s.Generation}) {
		n.metrics.drop(dropEndsFull, 1)
	}
}

func (n *Node) endLoop(ctx context.Context) {
	n.endQueue.drainLoop(ctx, func(ctx context.Context, batch []endedSession) {
		if err := n.backend.end(ctx, batch); err != nil {
			n.metrics.drop(dropEndLost, len(batch)) // they expire by themselves
		}
	})
}
