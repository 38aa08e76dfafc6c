package session

import (
	"context"

	"switchyard/internal/message"
)

// A space is the place where nodes meet. Every call is bounded by its context;
// an error wraps message.ErrAway when the space could not be reached, and else
// is what the space said.
type space interface {
	records
	boards
	rolls
	sweeps
	meters
	mail
	// up says whether the last call reached the space.
	up() bool
	close() error
}

// A record is a session as it is kept.
type record struct {
	message.Session
	node string // who owns it
}

// records keep sessions, each for the configured time after its last save.
type records interface {
	// resume makes node the owner, and returns the session with its raised
	// generation. False: there is no such session of this user.
	resume(ctx context.Context, id message.SessionID, user, node string) (message.Session, bool, error)
	// save returns a result for each.
	save(ctx context.Context, node string, batch []message.SessionSave) []message.SaveResult
	// end forgets sessions, but those of a greater generation.
	end(ctx context.Context, batch []ended) error
}

// An ended session is one whose client said goodbye.
type ended struct {
	id         message.SessionID
	generation int64
}

// boards tell nodes of each other, and who is barred.
type boards interface {
	beat(ctx context.Context, b beat) (board, error)
	// bar keeps users out; refused is how many there was no room for.
	bar(ctx context.Context, bars []bar) (refused int, err error)
	// bars returns who is kept out, and the state that this is.
	bars(ctx context.Context) (state string, bars []bar, err error)
}

// rolls list who is in which room.
type rolls interface {
	// present applies changes, and writes into each roll what became of it.
	present(ctx context.Context, rolls []*roll)
	// room returns who is in a room, of the nodes that are alive; over limit,
	// how many.
	room(ctx context.Context, room message.Room, alive map[string]bool, limit int) (message.Presence, error)
}

// sweeps find and remove what nobody uses any more.
type sweeps interface {
	// tags returns the revision of each tag, by shard; nil for a shard that
	// could not be reached, and -1 for a tag that is being swept.
	tags(ctx context.Context) ([]map[string]int64, error)
	// sweep removes a part of what a tag left behind; left says that there may
	// be more, gone that this call removed the tag itself: of two nodes that sweep
	// one at the same time, one is told so.
	sweep(ctx context.Context, shard int, tag string) (left, gone bool, err error)
}

// meters count what users spend on all nodes.
type meters interface {
	// meter takes what was spent out of the users' buckets, and writes into each
	// spending what is left.
	meter(ctx context.Context, rates [measures]rate, batch []*spending)
}

// A mail carries notices between nodes, and may lose them.
type mail interface {
	// send sends each to the node named, or to all.
	send(ctx context.Context, batch []letter) error
	// listenLoop calls receive with what is sent to the node, and connected
	// whenever notices may have been lost before, until ctx ends.
	listenLoop(ctx context.Context, node string, receive func(payload []byte), connected func())
}

// A letter is what one node sends.
type letter struct {
	to      string // a node, "" for all
	payload []byte
}
