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
	// maxBans bounds the users who are banned at the same time.
	maxBans = 20_000
	// maxBanDuration bounds the length of a ban.
	maxBanDuration = 30 * 24 * time.Hour
	// banTolerance is how much the ends of one ban may differ between two nodes.
	// It absorbs the time that a round trip takes.
	banTolerance = time.Second
	// banBatchSize bounds the bans that one call writes back.
	banBatchSize = 500
	// unknownVersion differs from every version that a backend returns, so the
	// next heartbeat compares the lists.
	unknownVersion = "?"
)

// A ban keeps a user from connecting for the remaining time.
type ban struct {
	user      string
	remaining time.Duration
}

// A banList holds the bans that this node knows. It is safe for concurrent use.
type banList struct {
	mu      sync.Mutex // Protects following.
	until   map[string]time.Time
	version string // the backend's version that until was last merged with
}

// Ban keeps a user from connecting to any node for a time. Each node gets
// EventBanned, to close the user's connections; this one gets it before Ban
// returns. A node that loses the event finds the ban by its next heartbeat,
// within about a second. A ban never shortens a longer one.
//
// An error that wraps message.ErrSharedStateUnavailable means that only this
// node enforces the ban. It writes the ban to the backend as soon as it can be
// reached, if this node still runs.
func (n *Node) Ban(ctx context.Context, user string, d time.Duration) error {
	switch {
	case user == "" || len(user) > message.MaxUserLength || !utf8.ValidString(user):
		return &message.InvalidError{Field: "user", Reason: "must be 1 to 128 bytes of UTF-8"}
	case d <= 0 || d > maxBanDuration:
		return &message.InvalidError{Field: "for", Reason: "must be over 0 and at most 720h"}
	}
	before := n.bans.end(user)
	if !n.bans.add(user, d) {
		return errTooManyBans
	}
	refused, err := n.backend.ban(ctx, []ban{{user, d}})
	if refused > 0 {
		n.bans.restore(user, before)
		return errTooManyBans
	}
	if err != nil {
		n.bans.resetVersion() // so the next heartbeat writes the ban
	}
	n.sendEvent("", message.NodeEvent{Kind: message.EventBanned, User: user, BanDuration: d})
	return err
}

var errTooManyBans error = &message.InvalidError{
	Field: "user", Reason: fmt.Sprintf("can't be barred: %d users are, and more may not", maxBans),
}

// Banned returns for how much longer the user is banned, and whether it is. It
// answers from memory. A caller that registers a connection must call it again
// afterwards: a ban may have come in between, when its event found no
// connection to close.
func (n *Node) Banned(user string) (time.Duration, bool) {
	n.bans.mu.Lock()
	defer n.bans.mu.Unlock()
	left := time.Until(n.bans.until[user])
	return max(left, 0), left > 0
}

// add adds a ban, unless the user has a longer one. It returns false if the
// list is full.
func (b *banList) add(user string, left time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addLocked(user, left)
}

// addLocked does what add does. The caller holds mu.
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

// end returns the end of a user's ban, or the zero time if there is none.
func (b *banList) end(user string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until[user]
}

// restore sets the end of a user's ban to what it was before. The zero time
// removes the ban.
func (b *banList) restore(user string, before time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if before.IsZero() {
		delete(b.until, user)
		return
	}
	b.until[user] = before
}

// resetVersion makes the next heartbeat merge the lists.
func (b *banList) resetVersion() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.version = unknownVersion
}

// isAt deletes the bans that are over, and reports whether the list was merged
// with this version of the backend's.
func (b *banList) isAt(version string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(b.until, func(_ string, until time.Time) bool { return now.After(until) })
	return b.version == version
}

// syncBans adds to the node and to the backend the bans that either lacks, if
// the backend's list has another version. Nobody can lift a ban, so a missing
// one was lost. A new node thus reads all bans, and an emptied Redis gets them
// back.
func (n *Node) syncBans(ctx context.Context, version string) {
	if n.bans.isAt(version) {
		return
	}
	version, stored, err := n.backend.bans(ctx)
	if err != nil {
		return // the next heartbeat tries again
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

// merge adds the stored bans to the list. It returns those that were new here,
// and those that the backend lacks.
func (b *banList) merge(version string, stored []ban) (fresh, missing []ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := make(map[string]time.Duration, len(stored))
	for _, s := range stored {
		known[s.user] = s.remaining
		if time.Until(b.until[s.user]) < s.remaining-banTolerance && b.addLocked(s.user, s.remaining) {
			fresh = append(fresh, s)
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
