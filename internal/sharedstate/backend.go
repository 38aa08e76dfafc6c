package sharedstate

import (
	"context"

	"switchyard/internal/message"
)

// A backend is the place where nodes meet. Every call is bounded by its context;
// an error wraps message.ErrSharedStateUnavailable when the space could not be reached, and else
// is what the space said.
type backend interface {
	sessionStore
	nodeStore
	presenceStore
	presenceSweeper
	limitStore
	pubSub
	// up says whether the last call reached the space.
	up() bool
	close() error
}

// A sessionRecord is a session as it is kept.
type sessionRecord struct {
	message.Session
	node string // who owns it
}

// sessionStore keep sessions, each for the configured time after its last save.
type sessionStore interface {
	// resume makes node the owner, and returns the session with its raised
	// generation. False: there is no such session of this user.
	resume(ctx context.Context, id message.SessionID, user, node string) (message.Session, bool, error)
	// save returns a result for each.
	save(ctx context.Context, node string, batch []message.SessionSave) []message.SaveResult
	// end forgets sessions, but those of a greater generation.
	end(ctx context.Context, batch []endedSession) error
}

// An endedSession session is one whose client said goodbye.
type endedSession struct {
	id         message.SessionID
	generation int64
}

// nodeStore tell nodes of each other, and who is barred.
type nodeStore interface {
	heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error)
	// bar keeps users out; refused is how many there was no room for.
	ban(ctx context.Context, bans []ban) (refused int, err error)
	// bars returns who is kept out, and the state that this is.
	bans(ctx context.Context) (version string, bans []ban, err error)
}

// presenceStore list who is in which room.
type presenceStore interface {
	// present applies changes, and writes into each roll what became of it.
	applyPresence(ctx context.Context, batches []*presenceBatch)
	// room returns who is in a room, of the nodes that are alive; over limit,
	// how many.
	roomPresence(ctx context.Context, room message.Room, alive map[string]bool, limit int) (message.Presence, error)
}

// presenceSweeper find and remove what nobody uses any more.
type presenceSweeper interface {
	// tags returns the revision of each tag, by shard; nil for a shard that
	// could not be reached, and -1 for a tag that is being swept.
	tags(ctx context.Context) ([]map[string]int64, error)
	// sweep removes a part of what a tag left behind; left says that there may
	// be more, gone that this call removed the tag itself: of two nodes that sweep
	// one at the same time, one is told so.
	sweep(ctx context.Context, shard int, tag string) (more, removed bool, err error)
}

// limitStore count what users spend on all nodes.
type limitStore interface {
	// meter takes what was spent out of the users' buckets, and writes into each
	// spending what is left.
	consume(ctx context.Context, rates [measureCount]rate, batch []*usage)
}

// A pubSub carries notices between nodes, and may lose them.
type pubSub interface {
	// send sends each to the node named, or to all.
	send(ctx context.Context, batch []envelope) error
	// listenLoop calls receive with what is sent to the node, and connected
	// whenever notices may have been lost before, until ctx ends.
	listenLoop(ctx context.Context, node string, receive func(payload []byte), connected func())
}

// A envelope is what one node sends.
type envelope struct {
	to      string // a node, "" for all
	payload []byte
}
