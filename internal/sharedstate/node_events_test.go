package sharedstate

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Nodes of two versions tell each other: what one wrote, the other must read.
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
	for _, l := range n.envelopes(batch) {
		got[l.to] = string(l.payload)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("written as\n%v, want\n%v", got, want)
	}
}

func TestMalformedEnvelopesAreHarmless(t *testing.T) {
	p := &testNode{logs: &logs{}}
	n, err := NewMemory(nil, Config{Node: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	p.Node = n
	n.hooks.Store(&Hooks{Notify: p.onEvent})
	for _, tt := range []struct {
		payload string
		want    []message.NodeEvent
	}{
		{`{"from":"b","notices":[{"k":1,"s":"s1","g":2,"new":{"x":[1]}}],"new":1}`, []message.NodeEvent{
			{Kind: message.EventTakeover, Node: "b", Session: "s1", Generation: 2},
		}},
		{`{"from":"b","notices":[{"k":99,"u":"x"},{"k":2,"s":"s2"}]}`, []message.NodeEvent{ // a kind of a later version
			{Kind: 99, Node: "b", User: "x"}, {Kind: message.EventSessionLive, Node: "b", Session: "s2"},
		}},
		{`{"from":"node-a","notices":[{"k":1,"s":"s1"}]}`, nil}, // its own, told before
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
			t.Errorf("%.80s was read as\n%+v, want\n%+v", tt.payload, p.events, tt.want)
		}
		p.mu.Unlock()
	}
	if left, banned := n.Banned("eve"); !banned || left > maxBanDuration {
		t.Errorf("eve is kept out for %v, %v", left, banned)
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

// What one node tells another comes in the order told.
func eventsKeepTheirOrder(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	const count = 3000
	for i := range count {
		a.sendEvent("node-b", message.NodeEvent{Kind: message.EventSessionLive, Generation: int64(i + 1)})
	}
	last := func(n message.NodeEvent) bool { return n.Generation == count }
	b.waitEvent(t, "the last of many", last)
	b.mu.Lock()
	defer b.mu.Unlock()
	next := int64(1)
	for _, n := range b.events {
		if n.Kind == message.EventSessionLive {
			if n.Generation != next {
				t.Fatalf("the %dth is %d", next, n.Generation)
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
		t.Errorf("%v dropped", got)
	}
	eventually(t, "the rest to be given up", func() bool {
		return a.metric(t, "session_dropped_total", "notices_full")+a.metric(t, "session_dropped_total", "notice_lost") == 3*maxQueuedEvents
	})
	proxy.Resume()
}

// Whatever happens, Close ends in time, and with a deadline sooner.
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
	began := time.Now()
	if err := a.Close(within(t, testTimeout)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("Close took %v", took)
	}
	began = time.Now()
	err := b.Close(within(t, 200*time.Millisecond))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close with 200 ms took %v: %v", took, err)
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
			t.Error("one too many was taken")
		}
		var mu sync.Mutex
		var got []int
		largest := 0
		ctx, cancel := context.WithCancel(t.Context())
		go b.drainLoop(ctx, func(_ context.Context, batch []int) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, batch...)
			largest = max(largest, len(batch))
		})
		synctest.Wait()
		b.add(500)
		b.flush(t.Context())
		if b.add(501) {
			t.Error("taken after flush")
		}
		mu.Lock()
		defer mu.Unlock()
		want := make([]int, 501)
		for i := range want {
			want[i] = i
		}
		if !slices.Equal(got, want) || largest > sendBatchSize {
			t.Errorf("sent %d in parts of up to %d", len(got), largest)
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
		b.flush(ctx) // nobody drains it
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A node of one process keeps what it may, and no more.
func TestTheMemoryBackendIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, nil)[0]
		m := p.backend.(*nodeView)
		m.maxSessions, m.maxBytes = 1000, 1<<20
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
		save(999, 0)
		if got := p.metric(t, "session_dropped_total", "sessions"); got != 0 {
			t.Errorf("%v dropped within the bound", got)
		}
		save(10, 0)
		if got := p.metric(t, "session_dropped_total", "sessions"); got != 10 {
			t.Errorf("%v dropped, want 10", got)
		}
		if got := p.trySave(t, oldest, true); got != message.SaveMissing {
			t.Errorf("the oldest: %v", saveResults[got])
		}
		save(300, 1000) // each of some 7 KB
		m.mu.Lock()
		bytes := m.bytes
		m.mu.Unlock()
		if bytes > 1<<20 || bytes < 1<<19 {
			t.Errorf("%d bytes", bytes)
		}
		time.Sleep(time.Hour)
		save(1, 0) // what has expired goes when something comes
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.sessions) != 1 || m.bySaveTime.Len() != 1 {
			t.Errorf("%d sessions, %d in order", len(m.sessions), m.bySaveTime.Len())
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
			t.Errorf("%v lost", got)
		}
		close(stuck)
	})
}
