package session

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
	"unicode/utf8"

	"switchyard/internal/message"
)

const (
	// maxBars bounds the users barred at the same time.
	maxBars = 20_000
	// maxBar is the longest bar.
	maxBar = 30 * 24 * time.Hour
	// barSlack is by how much two nodes may differ on when a bar ends.
	barSlack = time.Second
	// barsBatch is how many bars are written back at once.
	barsBatch = 500
	// stateUnknown is no state that bars are ever in.
	stateUnknown = "?"
)

// A bar keeps a user out.
type bar struct {
	user string
	left time.Duration
}

// barred is who is kept out, as far as this node knows.
type barred struct {
	mu    sync.Mutex // Protects following.
	until map[string]time.Time
	state string // the one of Redis that until was last compared with
}

// Bar keeps a user out for a time, on all nodes, and has them close the
// sockets they have of that user: each is told NoticeRemoved, this one before
// Bar returns. A node that gets no notice finds it on the board within about a
// second. An error that wraps message.ErrAway means that this node keeps the
// user out, and the others will once the space is back, if this one still runs.
func (n *Node) Bar(ctx context.Context, user string, d time.Duration) error {
	switch {
	case user == "" || len(user) > message.MaxUser || !utf8.ValidString(user):
		return &message.InvalidError{Field: "user", Reason: "must be 1 to 128 bytes of UTF-8"}
	case d <= 0 || d > maxBar:
		return &message.InvalidError{Field: "for", Reason: "must be over 0 and at most 720h"}
	}
	if !n.bars.learn(user, d) {
		return errTooManyBars
	}
	refused, err := n.space.bar(ctx, []bar{{user, d}})
	if refused > 0 {
		n.bars.drop(user)
		return errTooManyBars
	}
	if err != nil {
		n.bars.forgetState() // the next beat writes what is missing there
	}
	n.tell("", message.Notice{Kind: message.NoticeRemoved, User: user, For: d})
	return err
}

var errTooManyBars error = &message.InvalidError{
	Field: "user", Reason: fmt.Sprintf("can't be barred: %d users are, and more may not", maxBars),
}

// Barred says for how long the user is kept out, and whether at all, from
// memory. Who registers a socket asks once more after that: a bar may have come
// in between, and its notice before the socket was there to be closed.
func (n *Node) Barred(user string) (time.Duration, bool) {
	n.bars.mu.Lock()
	defer n.bars.mu.Unlock()
	left := time.Until(n.bars.until[user])
	return max(left, 0), left > 0
}

// learn notes a bar, unless a longer one is known. False: there is no room.
func (b *barred) learn(user string, left time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.extend(user, left)
}

// extend is learn. Caller holds mu.
func (b *barred) extend(user string, left time.Duration) bool {
	if b.until == nil {
		b.until = make(map[string]time.Time)
	}
	old, known := b.until[user]
	if !known && len(b.until) >= maxBars {
		return false
	}
	if until := time.Now().Add(left); until.After(old) {
		b.until[user] = until
	}
	return true
}

func (b *barred) drop(user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.until, user)
}

func (b *barred) forgetState() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = stateUnknown
}

// isAt forgets bars that are over, and says whether what is known was compared
// with this state.
func (b *barred) isAt(state string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(b.until, func(_ string, until time.Time) bool { return now.After(until) })
	return b.state == state
}

// syncBars makes the node and the space know the same bars: what either lacks
// is added, since no bar is ever taken back. So a fresh node learns all, and an
// emptied Redis gets them back.
func (n *Node) syncBars(ctx context.Context, state string) {
	if n.bars.isAt(state) {
		return
	}
	state, there, err := n.space.bars(ctx)
	if err != nil {
		return // the next beat tries again
	}
	fresh, missing := n.bars.compare(state, there)
	for _, b := range fresh {
		n.notify(message.Notice{Kind: message.NoticeRemoved, Node: n.cfg.Node, User: b.user, For: b.left})
	}
	for len(missing) > 0 {
		batch := missing[:min(len(missing), barsBatch)]
		missing = missing[len(batch):]
		if _, err := n.space.bar(ctx, batch); err != nil {
			n.bars.forgetState()
			return
		}
	}
}

// compare takes over what the space knows, and returns what was new here and
// what is missing there.
func (b *barred) compare(state string, there []bar) (fresh, missing []bar) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := make(map[string]time.Duration, len(there))
	for _, t := range there {
		known[t.user] = t.left
		if time.Until(b.until[t.user]) < t.left-barSlack && b.extend(t.user, t.left) {
			fresh = append(fresh, t)
		}
	}
	for user, until := range b.until {
		if left := time.Until(until); left > known[user]+barSlack {
			missing = append(missing, bar{user, left})
		}
	}
	b.state = state
	return fresh, missing
}
