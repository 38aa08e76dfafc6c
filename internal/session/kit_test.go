package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A testSet is a Set with a fake store. Its time is that of a bubble.
type testSet struct {
	*Set
	store  *fakeStore
	events *fakeEvents
	stop   func() // ends the loop that saves, after a last save
}

// inBubble runs f in a bubble of testing/synctest with a set whose sessions are saved.
func inBubble(t *testing.T, f func(t *testing.T, set *testSet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		set := &testSet{store: &fakeStore{stored: map[message.SessionID]message.Session{}}, events: new(fakeEvents)}
		set.Set = NewSet(Config{
			Node: "n1", Store: set.store, Events: set.events, TakeoverTimeout: 10 * time.Second, Log: new(testkit.Logs).Logger(),
		})
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			set.SaveLoop(stop)
		}()
		set.stop = sync.OnceFunc(func() { close(stop); <-ended })
		defer set.stop()
		f(t, set)
	})
}

// A fakeSocket is a connection with its client.
type fakeSocket struct {
	*Session
	client  *fakeClient
	conn    *fakeConnection
	secret  string
	resumed bool
}

// connect attaches a connection to the session of a secret, "" for a new one.
func (set *testSet) connect(secret string, rejoinRooms bool) *fakeSocket {
	c := &fakeSocket{
		client: &fakeClient{complete: true},
		conn:   &fakeConnection{started: time.Now(), closed: make(chan closeFrame, 1)},
	}
	c.Session, c.secret, c.resumed = set.Attach(c.conn, c.client, protocol.Handshake{Session: secret, RejoinRooms: rejoinRooms}, "ann")
	return c
}

// saved waits until the session was saved, and returns it as stored.
func (set *testSet) saved(c *fakeSocket) message.Session {
	time.Sleep(2*saveInterval + saveInterval/2) // not at the moment of a save
	set.store.mu.Lock()
	defer set.store.mu.Unlock()
	return set.store.stored[c.id]
}

// roomsOf returns the names of a session's rooms.
func roomsOf(s message.Session) string {
	names := make([]string, len(s.Rooms))
	for i, p := range s.Rooms {
		names[i] = string(p.Room)
	}
	return strings.Join(names, " ")
}

// A closeFrame is a close frame of the node.
type closeFrame struct {
	code protocol.CloseCode
	at   time.Time
}

// A fakeConnection implements Connection.
type fakeConnection struct {
	started time.Time
	asked   atomic.Bool
	closed  chan closeFrame
}

func (c *fakeConnection) Started() time.Time  { return c.started }
func (c *fakeConnection) IsAskedToMove() bool { return c.asked.Load() }
func (c *fakeConnection) CloseWith(code protocol.CloseCode) bool {
	select {
	case c.closed <- closeFrame{code, time.Now()}:
		return true
	default:
		return false
	}
}

// isOpen reports whether the node has not closed the connection.
func (c *fakeConnection) isOpen() bool { return len(c.closed) == 0 }

// A fakeClient implements Client.
type fakeClient struct {
	mu           sync.Mutex
	rooms        []message.RoomPosition
	complete     bool // no join is pending
	live         func()
	liveRooms    int
	presence     message.SessionID // as in the presence of rooms
	generation   int64
	pings, pongs int
}

func (c *fakeClient) SetSession(id message.SessionID, generation int64) {
	c.presence, c.generation = id, generation
}
func (c *fakeClient) WhenLive(rooms int, f func()) { c.liveRooms, c.live = rooms, f }
func (c *fakeClient) PingSent()                    { c.pings++ }
func (c *fakeClient) PongReceived()                { c.pongs++ }

func (c *fakeClient) Positions(to []message.RoomPosition) ([]message.RoomPosition, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(to, c.rooms...), c.complete
}

// setRooms sets the client's rooms. complete means that no join is pending.
func (c *fakeClient) setRooms(complete bool, names ...message.Room) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms, c.complete = nil, complete
	for _, name := range names {
		c.rooms = append(c.rooms, message.RoomPosition{Room: name, Seq: 1})
	}
}

// fakeEvents records the events.
type fakeEvents struct{ live, ended []message.Session }

func (e *fakeEvents) AnnounceLive(s message.Session) { e.live = append(e.live, s) }
func (e *fakeEvents) End(s message.Session)          { e.ended = append(e.ended, s) }

// A fakeStore keeps sessions as all nodes share them.
type fakeStore struct {
	unavailable atomic.Bool  // as a Redis that hangs
	failures    atomic.Int64 // saves that fail; all if it is negative

	mu      sync.Mutex
	stored  map[message.SessionID]message.Session
	batches [][]message.SessionSave
	created int
}

func (f *fakeStore) New(user string) (string, message.Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created++
	id := message.SessionID(fmt.Sprintf("s%d", f.created))
	return string(id) + ".secret", message.Session{ID: id, User: user, Generation: 1}
}

func (f *fakeStore) Resume(ctx context.Context, secret, user string) (message.Session, bool, error) {
	if f.unavailable.Load() {
		<-ctx.Done()
		return message.Session{}, false, errors.Join(message.ErrSharedStateUnavailable, ctx.Err())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id, _, _ := strings.Cut(secret, ".")
	s, ok := f.stored[message.SessionID(id)]
	if !ok || s.User != user {
		return message.Session{}, false, nil
	}
	s.Generation++
	f.stored[s.ID] = s
	s.Revision = 0
	if s.PreviousNode == "" {
		s.PreviousNode = "n1"
	}
	return s, true, nil
}

func (f *fakeStore) Save(_ context.Context, batch []message.SessionSave) []message.SaveResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches = append(f.batches, slices.Clone(batch))
	results := make([]message.SaveResult, len(batch)) // SaveDone
	left := f.failures.Load()
	if left != 0 {
		f.failures.Store(max(left-1, -1))
	}
	for i, save := range batch {
		stored, ok := f.stored[save.ID]
		switch {
		case left != 0:
			results[i] = message.SaveFailed
		case ok && stored.Generation > save.Generation:
			results[i] = message.SaveSuperseded
		case save.Renew && !ok:
			results[i] = message.SaveMissing
		case !save.Renew:
			f.stored[save.ID] = save.Session
		}
	}
	return results
}

// saves returns how often sessions were saved.
func (f *fakeStore) saves() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, batch := range f.batches {
		n += len(batch)
	}
	return n
}
