package sharedstate

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
	// maxBans bounds the users barred at the same time.
	maxBans = 20_000
	// maxBanDuration is the longest bar.
	maxBanDuration = 30 * 24 * time.Hour
	// banTolerance is by how much two nodes may differ on when a bar ends.
	banTolerance = time.Second
	// banBatchSize is how many bars are written back at once.
	banBatchSize = 500
	// unknownVersion is no state that bars are ever in.
	unknownVersion = "?"
)

// A ban keeps a user out.
type ban struct {
	user      string
	remaining time.Duration
}

// banList is who is kept out, as far as this node knows.
type banList struct {
	mu      sync.Mutex // Protects following.
	until   map[string]time.Time
	version string // the one of Redis that until was last compared with
}

// Ban keeps a user out for a time, on all nodes, and has them close the
// sockets they have of that user: each is told EventBanned, this one before
// Ban returns. A node that gets no notice finds it on the board within about a
// second. An error that wraps message.ErrSharedStateUnavailable means that this node keeps the
// user out, and the others will once the space is back, if this one still runs.
func (n *Node) Ban(ctx context.Context, user string, d time.Duration) error {
	switch {
	case user == "" || len(user) > message.MaxUserLength || !utf8.ValidString(user):
		return &message.InvalidError{Field: "user", Reason: "must be 1 to 128 bytes of UTF-8"}
	case d <= 0 || d > maxBanDuration:
		return &message.InvalidError{Field: "for", Reason: "must be over 0 and at most 720h"}
	}
	if !n.bans.add(user, d) {
		return errTooManyBans
	}
	refused, err := n.backend.ban(ctx, []ban{{user, d}})
	if refused > 0 {
		n.bans.remove(user)
		return errTooManyBans
	}
	if err != nil {
		n.bans.resetVersion() // the next beat writes what is missing there
	}
	n.sendEvent("", message.NodeEvent{Kind: message.EventBanned, User: user, BanDuration: d})
	return err
}

var errTooManyBans error = &message.InvalidError{
	Field: "user", Reason: fmt.Sprintf("can't be barred: %d users are, and more may not", maxBans),
}

// Banned says for how long the user is kept out, and whether at all, from
// memory. Who registers a socket asks once more after that: a bar may have come
// in between, and its notice before the socket was there to be closed.
func (n *Node) Banned(user string) (time.Duration, bool) {
	n.bans.mu.Lock()
	defer n.bans.mu.Unlock()
	left := time.Until(n.bans.until[user])
	return max(left, 0), left > 0
}

// add notes a bar, unless a longer one is known. False: there is no room.
func (b *banList) add(user string, left time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addLocked(user, left)
}

// addLocked is learn. Caller holds mu.
func (b *banList) addLocked(user string, left time.Duration) bool {
	if b.until == nil {
		b.until = make(map[string]time.Time)
	}
	old, known := b.until[user]
	if !known && len(b.until) >= maxBans {
		return false
	}
	if until := time.Now().Add(left); until.After(old) {
		b.until[user] = until
	}
	return true
}

func (b *banList) remove(user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.until, user)
}

func (b *banList) resetVersion() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.version = unknownVersion
}

// isOwner forgets bars that are over, and says whether what is known was compared
// with this state.
func (b *banList) isAt(version string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(b.until, func(_ string, until time.Time) bool { return now.After(until) })
	return b.version == version
}

// syncBans makes the node and the space know the same bars: what either lacks
// is added, since no bar is ever taken back. So a fresh node learns all, and an
// emptied Redis gets them back.
func (n *Node) syncBans(ctx context.Context, version string) {
	if n.bans.isAt(version) {
		return
	}
	version, stored, err := n.backend.bans(ctx)
	if err != nil {
		return // the next beat tries again
	}
	fresh, missing := n.bans.merge(version, stored)
	for _, b := range fresh {
		n.notify(message.NodeEvent{Kind: message.EventBanned, Node: n.cfg.Node, User: b.user, BanDuration: b.remaining})
	}
	for len(missing) > 0 {
		batch := missing[:min(len(missing), banBatchSize)]
		missing = missing[len(batch):]
		if _, err := n.backend.ban(ctx, batch); err != nil {
			n.bans.resetVersion()
			return
		}
	}
}

// merge takes over what the space knows, and returns what was new here and
// what is missing there.
func (b *banList) merge(version string, stored []ban) (fresh, missing []ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := make(map[string]time.Duration, len(stored))
	for _, t := range stored {
		known[t.user] = t.remaining
		if time.Until(b.until[t.user]) < t.remaining-banTolerance && b.addLocked(t.user, t.remaining) {
			fresh = append(fresh, t)
		}
	}
	for user, until := range b.until {
		if left := time.Until(until); left > known[user]+banTolerance {
			missing = append(missing, ban{user, left})
		}
	}
	b.version = version
	return fresh, missing
}
