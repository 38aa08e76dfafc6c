package sharedstate

import (
	"context"

	"switchyard/internal/message"
)

// New returns a new session of a user. It exists on this node only until the
// first Save. The client resumes the session with the secret, which must not be
// logged.
func (n *Node) New(user string) (secret string, s message.Session) {
	secret, id := newSecret()
	return secret, message.Session{ID: id, User: user, Generation: 1}
}

// Resume takes over the session that a secret belongs to, and sends
// EventTakeover to its previous owner. It returns false if the secret is wrong
// or the user has no such session, and does not reveal which of the two. It
// takes at most callTimeout, and as long again if many calls are queued. An
// error wraps message.ErrSharedStateUnavailable if the backend could not be
// reached; the client then gets a new session.
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

// AnnounceLive sends EventSessionLive to the previous owner of the session: the
// newer connection is live in all its rooms. For a new session it does
// nothing.
func (n *Node) AnnounceLive(s message.Session) {
	if s.PreviousNode != "" {
		n.sendEvent(s.PreviousNode, message.NodeEvent{Kind: message.EventSessionLive, Session: s.ID, Generation: s.Generation})
	}
}

// Save keeps sessions for another TTL and returns a result for each, in the
// order of the batch. The caller saves every session at least twice in a TTL, a
// few hundred at a time. A failure costs no messages: a client that reconnects
// gets a new session.
func (n *Node) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	results := n.backend.save(ctx, n.cfg.Node, batch)
	for _, r := range results {
		n.metrics.saves[r].Inc()
	}
	return results
}

// End deletes a session that its client has closed, unless a newer connection
// has taken it over. It queues the deletion and never blocks.
func (n *Node) End(s message.Session) {
	if !n.endQueue.add(endedSession{id: s.ID, generation: s.Generation}) {
		n.metrics.drop(dropEndsFull, 1)
	}
}

// endLoop deletes the sessions in endQueue.
func (n *Node) endLoop(ctx context.Context) {
	n.endQueue.sendLoop(ctx, func(ctx context.Context, batch []endedSession) {
		if err := n.backend.end(ctx, batch); err != nil {
			n.metrics.drop(dropEndLost, len(batch)) // they expire by themselves
		}
	})
}
