package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Nodes of two releases run side by side, so each must read what the other
// writes.
func TestTheFormatOfEventsIsFixed(t *testing.T) {
	n, err := NewMemory(nil, Config{Node: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	batch := []outgoingEvent{
		{"node-b", message.NodeEvent{Kind: message.EventTakeover, Session: "s1", Generation: 2}},
		{"", message.NodeEvent{Kind: message.EventBanned, User: "eve", BanDuration: 90 * time.Second}},
		{"node-b", message.NodeEvent{Kind: message.EventSessionLive, Session: "s1", Generation: 2}},
		{"", message.NodeEvent{Kind: message.EventPresenceChanged, Rooms: []message.Room{"a", "b"}}},
		{"", message.NodeEvent{Kind: message.EventPresenceChanged}},
	}
	want := map[string]string{
		"node-b": `{"from":"node-a","notices":[{"k":1,"s":"s1","g":2},{"k":2,"s":"s1","g":2}]}`,
		"":       `{"from":"node-a","notices":[{"k":3,"u":"eve","f":90000},{"k":4,"r":["a","b"]},{"k":4}]}`,
	}
	got := map[string]string{}
	for _, e := range n.envelopes(batch) {
		got[e.to] = string(e.payload)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("encoded as\n%v, want\n%v", got, want)
	}
}

func TestMalformedEnvelopesAreHarmless(t *testing.T) {
	n, err := NewMemory(nil, Config{Node: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	p := &testNode{Node: n}
	n.hooks.Store(&Hooks{Notify: p.onEvent})
	for _, tt := range []struct {
		payload string
		want    []message.NodeEvent
	}{
		{`{"from":"b","notices":[{"k":1,"s":"s1","g":2,"new":{"x":[1]}}],"new":1}`, []message.NodeEvent{
			{Kind: message.EventTakeover, Node: "b", Session: "s1", Generation: 2},
		}},
		{`{"from":"b","notices":[{"k":99,"u":"x"},{"k":2,"s":"s2"}]}`, []message.NodeEvent{ // a kind of a later release
			{Kind: 99, Node: "b", User: "x"}, {Kind: message.EventSessionLive, Node: "b", Session: "s2"},
		}},
		{`{"from":"node-a","notices":[{"k":1,"s":"s1"}]}`, nil}, // the node's own
		{`{"from":"b"}`, nil},
		{`{"from":"b","notices":[{"k":3,"u":"eve","f":9223372036854775807}]}`, []message.NodeEvent{
			{Kind: message.EventBanned, Node: "b", User: "eve", BanDuration: maxBanDuration},
		}},
		{`no json`, nil},
		{`{"from":5}`, nil},
		{`{"from":"b","notices":[{"k":1,"s":"` + strings.Repeat("s", maxEnvelope) + `"}]}`, nil},
	} {
		p.mu.Lock()
		p.events = nil
		p.mu.Unlock()
		n.receive([]byte(tt.payload))
		p.mu.Lock()
		if !reflect.DeepEqual(p.events, tt.want) {
			t.Errorf("%.80s was decoded as\n%+v, want\n%+v", tt.payload, p.events, tt.want)
		}
		p.mu.Unlock()
	}
	if left, banned := n.Banned("eve"); !banned || left > maxBanDuration {
		t.Errorf("eve is banned %v, for %v", banned, left)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"from":"b","notices":[{"k":3,"u":"eve","f":90000},{"k":4,"r":["a","b"]}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		n, err := NewMemory(nil, Config{Node: "node-a"})
		if err != nil {
			panic(err)
		}
		n.hooks.Store(&Hooks{Notify: func(message.NodeEvent) {}})
		n.receive(b)
	})
}

// The events from one node to another arrive in the order in which they were
// sent.
func eventsKeepTheirOrder(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	const count = 3000
	for i := range count {
		a.sendEvent("node-b", message.NodeEvent{Kind: message.EventSessionLive, Generation: int64(i + 1)})
	}
	b.waitEvent(t, "that is the last one", func(e message.NodeEvent) bool { return e.Generation == count })
	b.mu.Lock()
	defer b.mu.Unlock()
	next := int64(1)
	for _, e := range b.events {
		if e.Kind == message.EventSessionLive {
			if e.Generation != next {
				t.Fatalf("event %d arrived as number %d", e.Generation, next)
			}
			next++
		}
	}
}

func TestEventsBeyondTheQueueBoundAreCounted(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, _ := startPair(t, redisAt("redis://"+proxy.Addr()), nil)
	proxy.Stall()
	for range 3 * maxQueuedEvents {
		a.sendEvent("node-b", message.NodeEvent{Kind: message.EventSessionLive})
	}
	if got := a.metric(t, "session_dropped_total", "notices_full"); got < maxQueuedEvents {
		t.Errorf("%v events were dropped, want %d or more", got, maxQueuedEvents)
	}
	testkit.Eventually(t, "the other events are lost", func() bool {
		return a.metric(t, "session_dropped_total", "notices_full")+a.metric(t, "session_dropped_total", "notice_lost") == 3*maxQueuedEvents
	})
	proxy.Resume()
}

// Close ends even if Redis does not answer, with a deadline and without. How soon, and
// with which error, is a matter of TestCloseIsBounded: here the last call may give up
// just before the deadline or with it.
func TestCloseWithAStalledRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, redisAt("redis://"+proxy.Addr()), nil)
	proxy.Stall()
	for range 2000 {
		_, s := a.New("ada")
		a.End(s)
		a.sendEvent("node-b", message.NodeEvent{Kind: message.EventSessionLive})
		a.changePresence(message.PresenceJoined, "lobby", "ada")
	}
	if err := a.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := b.Close(testkit.Within(t, 200*time.Millisecond)); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close with a deadline of 200 ms: %v", err)
	}
}

// A stalledBackend accepts calls about nodes, events and ended sessions, and
// answers them only after callTimeout, as a Redis that does not answer.
type stalledBackend struct {
	backend
	stalled atomic.Bool
}

func (s *stalledBackend) wait(ctx context.Context) error {
	if !s.stalled.Load() {
		return nil
	}
	select {
	case <-time.After(callTimeout):
	case <-ctx.Done():
	}
	return message.ErrSharedStateUnavailable
}

func (s *stalledBackend) heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error) {
	if err := s.wait(ctx); err != nil {
		return heartbeatReply{}, err
	}
	return s.backend.heartbeat(ctx, b)
}

func (s *stalledBackend) send(ctx context.Context, batch []envelope) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.backend.send(ctx, batch)
}

func (s *stalledBackend) end(ctx context.Context, batch []endedSession) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.backend.end(ctx, batch)
}

// Close gives each queue the time of its calls, and no more time than its context
// has.
func TestCloseIsBounded(t *testing.T) {
	for _, tt := range []struct {
		deadline, most time.Duration
	}{
		{time.Minute, 8 * time.Second},
		{200 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(tt.deadline.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var backend *stalledBackend
				p := startMemoryNodesWith(t, 1, nil, func(n *Node) {
					backend = &stalledBackend{backend: n.backend}
					n.backend = backend
				})[0]
				time.Sleep(1100 * time.Millisecond) // until no heartbeat is under way
				backend.stalled.Store(true)
				for range 2000 {
					_, s := p.New("ada")
					p.End(s)
					p.sendEvent("node-b", message.NodeEvent{Kind: message.EventSessionLive})
				}
				ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
				defer cancel()
				began := time.Now()
				err := p.Close(ctx)
				if took := time.Since(began); took > tt.most || (err != nil) != (tt.deadline < time.Second) {
					t.Errorf("Close took %v, want %v at most; %v", took, tt.most, err)
				}
			})
		})
	}
}

func TestABacklogIsBoundedAndKeepsItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBacklog[int](500)
		for i := range 500 {
			if !b.add(i) {
				t.Fatalf("%d refused", i)
			}
		}
		if b.add(500) {
			t.Error("a full backlog accepts an item")
		}
		var mu sync.Mutex
		var got []int
		largest := 0
		ctx, cancel := context.WithCancel(t.Context())
		go b.sendLoop(ctx, func(_ context.Context, batch []int) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, batch...)
			largest = max(largest, len(batch))
		})
		synctest.Wait()
		b.add(500)
		b.flush(t.Context())
		if b.add(501) {
			t.Error("a closed backlog accepts an item")
		}
		mu.Lock()
		defer mu.Unlock()
		want := make([]int, 501)
		for i := range want {
			want[i] = i
		}
		if !slices.Equal(got, want) || largest > sendBatchSize {
			t.Errorf("%d items were sent in batches of up to %d", len(got), largest)
		}
		cancel()
	})
}

func TestAFlushEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBacklog[int](10)
		b.add(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		b.flush(ctx) // without a sendLoop
		if took := time.Since(began); took != time.Second {
			t.Errorf("flush took %v, want 1s", took)
		}
	})
}

// The memory backend keeps as many sessions and bytes as it may, and no more.
func TestTheMemoryBackendIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, nil)[0]
		m := p.backend.(*nodeView)
		m.maxSessions, m.maxBytes = 1000, 1<<17
		save := func(count, rooms int) (first message.Session) {
			batch := make([]message.SessionSave, count)
			for i := range batch {
				_, batch[i].Session = p.New("ada")
				batch[i].Rooms = manyRooms(rooms)
				batch[i].Revision = 1
			}
			p.Save(t.Context(), batch)
			return batch[0].Session
		}
		oldest := save(1, 0)
		secondOldest := save(999, 0)
		if got := p.metric(t, "session_dropped_total", "sessions"); got != 0 {
			t.Errorf("%v sessions were dropped within the bound", got)
		}
		oldest.Revision = 1
		if got := p.trySave(t, oldest, true); got != message.SaveDone { // so that it is the newest
			t.Errorf("a touch of the oldest: %v", saveResults[got])
		}
		save(10, 0)
		if got := p.metric(t, "session_dropped_total", "sessions"); got != 10 {
			t.Errorf("%v sessions were dropped, want 10", got)
		}
		if got := p.trySave(t, secondOldest, true); got != message.SaveMissing {
			t.Errorf("the session that was saved longest ago: %v", saveResults[got])
		}
		if got := p.trySave(t, oldest, true); got != message.SaveDone {
			t.Errorf("a session that was renewed: %v", saveResults[got])
		}
		save(300, 100) // about 700 bytes each
		m.mu.Lock()
		bytes := m.bytes
		m.mu.Unlock()
		if bytes > 1<<17 || bytes < 1<<16 {
			t.Errorf("the sessions take %d bytes, want %d to %d", bytes, 1<<16, 1<<17)
		}
		time.Sleep(time.Hour)
		save(1, 0) // which removes the expired ones
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.sessions) != 1 || m.bySaveTime.Len() != 1 {
			t.Errorf("%d sessions are kept, %d in the list", len(m.sessions), m.bySaveTime.Len())
		}
	})
}

func TestASlowListenerOfTheMemoryBackendLosesEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(time.Second)
		stuck := make(chan struct{})
		b.hooks.Store(&Hooks{Status: b.reportStatus, Notify: func(message.NodeEvent) { <-stuck }})
		for i := range 3 * memoryInboxSize {
			a.backend.send(t.Context(), []envelope{{"node-1", fmt.Appendf(nil, `{"from":"x","notices":[{"k":2,"g":%d}]}`, i)}})
		}
		if got := a.metric(t, "session_dropped_total", "notice_lost"); got < 2*memoryInboxSize-1 {
			t.Errorf("%v events were lost, want %d or more", got, 2*memoryInboxSize-1)
		}
		close(stuck)
	})
}
