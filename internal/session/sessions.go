package session

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
// of the two, nobody learns. An error wraps message.ErrAway when nobody could
// be asked; the client then gets a fresh session. It takes 500 ms
// at most, and as long again where many ask at once.
func (n *Node) Resume(ctx context.Context, secret, user string) (message.Session, bool, error) {
	id, ok := readSecret(secret)
	if !ok {
		n.metrics.resumes[resumeUnknown].Inc()
		return message.Session{}, false, nil
	}
	s, ok, err := n.space.resume(ctx, id, user, n.cfg.Node)
	switch {
	case err != nil:
		n.metrics.resumes[resumeAway].Inc()
		return message.Session{}, false, err
	case !ok:
		n.metrics.resumes[resumeUnknown].Inc()
		return message.Session{}, false, nil
	}
	n.metrics.resumes[resumeDone].Inc()
	if s.From != n.cfg.Node {
		n.fleet.came(s.From, 1)
	}
	n.tell(s.From, message.Notice{Kind: message.NoticeTaken, Session: s.ID, Generation: s.Generation})
	return s, true, nil
}

// Live tells the node that had the session before that its newer socket, this
// one, is live in all its rooms. For a fresh session it does nothing.
func (n *Node) Live(s message.Session) {
	if s.From != "" {
		n.tell(s.From, message.Notice{Kind: message.NoticeLive, Session: s.ID, Generation: s.Generation})
	}
}

// Save keeps sessions for another TTL, and returns a result for each. It is to
// be called for every session at least twice in a TTL, a few hundred at a time.
// When it fails the service goes on: who comes back then has a fresh session.
func (n *Node) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	results := n.space.save(ctx, n.cfg.Node, batch)
	for _, r := range results {
		n.metrics.saves[r].Inc()
	}
	return results
}

// End forgets a session whose client said goodbye, soon. One that was taken
// over meanwhile stays. It never blocks.
func (n *Node) End(s message.Session) {
	if !n.ends.add(ended{id: s.ID, generation: s.Generation}) {
		n.metrics.drop(dropEnds, 1)
	}
}

func (n *Node) endLoop(ctx context.Context) {
	n.ends.drainLoop(ctx, func(ctx context.Context, batch []ended) {
		if err := n.space.end(ctx, batch); err != nil {
			n.metrics.drop(dropEnd, len(batch)) // they expire by themselves
		}
	})
}
