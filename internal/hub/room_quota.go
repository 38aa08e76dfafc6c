package hub

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

// What a client in a room, and a room that is open, take of memory, in bytes. The hub
// needs 280 and 1,025 (BenchmarkMemoryOfARoom); the rest is for presence and for the
// subscription at the broker.
const (
	MemberBytes = 512
	TopicBytes  = 2 << 10
)

// MaxRoomsOfReader returns in how many rooms all clients of one reader may be together: in
// twenty times as many as one client, since a user has more than one connection, and each has
// two while it moves; and in no more than an eighth of the memory for rooms has place for.
func MaxRoomsOfReader(maxRooms int, bytes int64) int {
	return min(20*maxRooms, int(bytes/8/(MemberBytes+TopicBytes)))
}

var (
	errTooManyOfReader = &protocol.Error{
		Code:    protocol.CodeTooManyRooms,
		Message: "leave a room first: the connections of this user, or of this address, are in as many together as they may",
	}
	errNoMemoryForRooms = &protocol.Error{
		Code: protocol.CodeUnavailable, Message: "this node has no memory for another room", RetryAfter: time.Second,
	}
)

// A roomQuota bounds the rooms that clients are in: those of one reader together, since a
// connection costs little and each may be in MaxRooms, and the memory of all. A room counts
// for each client in it. It is safe for concurrent use.
type roomQuota struct {
	ofReader int
	bytes    int64 // of memberships and topics together

	// mu protects the fields below.
	mu          sync.Mutex
	memberships map[string]int // by reader; without clients that have none
	used        int64
}

func newRoomQuota(maxRooms int, bytes int64) *roomQuota {
	return &roomQuota{ofReader: MaxRoomsOfReader(maxRooms, bytes), bytes: bytes, memberships: map[string]int{}}
}

// join counts a membership of a client of reader, "" for one whose reads are not counted.
// It returns an error if it is one too many, which one that replaces another never is.
func (q *roomQuota) join(reader string, replaces bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case replaces:
	case q.used+MemberBytes > q.bytes:
		return errNoMemoryForRooms
	case reader != "" && q.memberships[reader] >= q.ofReader:
		return errTooManyOfReader
	}
	if q.used += MemberBytes; reader != "" {
		q.memberships[reader]++
	}
	return nil
}

// leave takes back a join.
func (q *roomQuota) leave(reader string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used -= MemberBytes; reader == "" {
		return
	}
	if q.memberships[reader]--; q.memberships[reader] == 0 {
		delete(q.memberships, reader)
	}
}

// addTopics counts n topics more, or fewer if n is negative.
func (q *roomQuota) addTopics(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used += int64(n) * TopicBytes
}
