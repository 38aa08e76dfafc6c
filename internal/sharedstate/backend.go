package sharedstate

import (
	"context"

	"switchyard/internal/message"
)

// A backend stores the shared state: Redis, or the memory of one process. The
// context of each call bounds it. An error wraps
// message.ErrSharedStateUnavailable when the backend could not be reached;
// otherwise it is the backend's refusal. A backend is safe for concurrent use.
type backend interface {
	sessionStore
	nodeStore
	presenceStore
	presenceSweeper
	limitStore
	pubSub
	// state returns whether the last call reached the backend, and whether it stores.
	state() string
	close() error
}

// A sessionRecord is a session with its owner, as a backend stores it.
type sessionRecord struct {
	message.Session
	node string // the owner
}

// A sessionStore keeps each session for Config.TTL after its last save.
type sessionStore interface {
	// resume makes node the owner and returns the session with its generation
	// raised by one. It returns false if the user has no such session.
	resume(ctx context.Context, id message.SessionID, user, node string) (message.Session, bool, error)
	// save returns one result for each session of the batch, in its order.
	save(ctx context.Context, node string, batch []message.SessionSave) []message.SaveResult
	// end deletes sessions, except those that have a greater generation.
	end(ctx context.Context, batch []endedSession) error
}

// An endedSession is a session whose client closed it for good.
type endedSession struct {
	id         message.SessionID
	generation int64
}

// A nodeStore keeps the status of each node, and the bans.
type nodeStore interface {
	heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error)
	// ban adds bans; refused is how many exceeded maxBans.
	ban(ctx context.Context, bans []ban) (refused int, err error)
	// bans returns all bans in force, and the version of the list.
	bans(ctx context.Context) (version string, bans []ban, err error)
}

// A presenceStore keeps which sessions are in which room.
type presenceStore interface {
	// applyPresence applies each batch and writes its outcome into it.
	applyPresence(ctx context.Context, batches []*presenceBatch)
	// roomPresence returns the entries of a room that belong to the alive nodes,
	// or only their count if there are more than limit.
	roomPresence(ctx context.Context, room message.Room, alive map[string]bool, limit int) (message.Presence, error)
}

// A presenceSweeper finds and removes the entries of stale tags.
type presenceSweeper interface {
	// tags returns the revision of each tag, by shard. The map of a shard that
	// could not be reached is nil; the revision of a tag that is being swept is
	// -1.
	tags(ctx context.Context) ([]map[string]int64, error)
	// sweep removes some of a tag's entries. If more is true, call it again.
	// removed reports that this call removed the tag itself: of several nodes
	// that sweep one tag at the same time, exactly one gets true.
	sweep(ctx context.Context, shard int, tag string) (more, removed bool, err error)
}

// A limitStore keeps the bucket of each user, which all nodes share.
type limitStore interface {
	// consume subtracts what users spent from their buckets and writes the new
	// levels into the batch.
	consume(ctx context.Context, rates [measureCount]rate, batch []*usage)
}

// A pubSub carries envelopes between nodes, and may lose them.
type pubSub interface {
	// send publishes each envelope to the node that it names, or to all nodes.
	send(ctx context.Context, batch []envelope) error
	// listenLoop calls receive with each payload for the node, and connected
	// after each time that envelopes may have been lost. It returns when ctx
	// ends.
	listenLoop(ctx context.Context, node string, receive func(payload []byte), connected func())
}

// An envelope is the unit of pub/sub: the encoded events for one receiver.
type envelope struct {
	to      string // a node, or "" for all nodes
	payload []byte
}
