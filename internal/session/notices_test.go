package session

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
func TestTheFormatOfNoticesIsFixed(t *testing.T) {
	n, err := NewMemory(nil, Config{Node: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	batch := []posted{
		{"node-b", message.Notice{Kind: message.NoticeTaken, Session: "s1", Generation: 2}},
		{"", message.Notice{Kind: message.NoticeRemoved, User: "eve", For: 90 * time.Second}},
		{"node-b", message.Notice{Kind: message.NoticeLive, Session: "s1", Generation: 2}},
		{"", message.Notice{Kind: message.NoticePresence, Rooms: []message.Room{"a", "b"}}},
		{"", message.Notice{Kind: message.NoticePresence}},
	}
	want := map[string]string{
		"node-b": `{"from":"node-a","notices":[{"k":1,"s":"s1","g":2},{"k":2,"s":"s1","g":2}]}`,
		"":       `{"from":"node-a","notices":[{"k":3,"u":"eve","f":90000},{"k":4,"r":["a","b"]},{"k":4}]}`,
	}
	got := map[string]string{}
	for _, l := range n.letters(batch) {
		got[l.to] = string(l.payload)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("written as\n%v, want\n%v", got, want)
	}
}

func TestLettersAreReadWithCare(t *testing.T) {
	p := &peer{logs: &logs{}}
	n, err := NewMemory(nil, Config{Node: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	p.Node = n
	n.hooks.Store(&Hooks{Notify: p.hear})
	for _, tt := range []struct {
		letter string
		want   []message.Notice
	}{
		{`{"from":"b","notices":[{"k":1,"s":"s1","g":2,"new":{"x":[1]}}],"new":1}`, []message.Notice{
			{Kind: message.NoticeTaken, Node: "b", Session: "s1", Generation: 2},
		}},
		{`{"from":"b","notices":[{"k":99,"u":"x"},{"k":2,"s":"s2"}]}`, []message.Notice{ // a kind of a later version
			{Kind: 99, Node: "b", User: "x"}, {Kind: message.NoticeLive, Node: "b", Session: "s2"},
		}},
		{`{"from":"node-a","notices":[{"k":1,"s":"s1"}]}`, nil}, // its own, told before
		{`{"from":"b"}`, nil},
		{`{"from":"b","notices":[{"k":3,"u":"eve","f":9223372036854775807}]}`, []message.Notice{
			{Kind: message.NoticeRemoved, Node: "b", User: "eve", For: maxBar},
		}},
		{`no json`, nil},
		{`{"from":5}`, nil},
		{`{"from":"b","notices":[{"k":1,"s":"` + strings.Repeat("s", maxLetter) + `"}]}`, nil},
	} {
		p.mu.Lock()
		p.notices = nil
		p.mu.Unlock()
		n.receive([]byte(tt.letter))
		p.mu.Lock()
		if !reflect.DeepEqual(p.notices, tt.want) {
			t.Errorf("%.80s was read as\n%+v, want\n%+v", tt.letter, p.notices, tt.want)
		}
		p.mu.Unlock()
	}
	if left, barred := n.Barred("eve"); !barred || left > maxBar {
		t.Errorf("eve is kept out for %v, %v", left, barred)
	}
}

func FuzzLetter(f *testing.F) {
	f.Add([]byte(`{"from":"b","notices":[{"k":3,"u":"eve","f":90000},{"k":4,"r":["a","b"]}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		n, err := NewMemory(nil, Config{Node: "node-a"})
		if err != nil {
			panic(err)
		}
		n.hooks.Store(&Hooks{Notify: func(message.Notice) {}})
		n.receive(b)
	})
}

// What one node tells another comes in the order told.
func noticesKeepTheirOrder(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	const count = 3000
	for i := range count {
		a.tell("node-b", message.Notice{Kind: message.NoticeLive, Generation: int64(i + 1)})
	}
	last := func(n message.Notice) bool { return n.Generation == count }
	b.waitNotice(t, "the last of many", last)
	b.mu.Lock()
	defer b.mu.Unlock()
	next := int64(1)
	for _, n := range b.notices {
		if n.Kind == message.NoticeLive {
			if n.Generation != next {
				t.Fatalf("the %dth is %d", next, n.Generation)
			}
			next++
		}
	}
}

func TestMoreNoticesThanMayWaitAreCounted(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, _ := pair(t, at("redis://"+proxy.Addr()), nil)
	proxy.Stall()
	for range 3 * maxNotices {
		a.tell("node-b", message.Notice{Kind: message.NoticeLive})
	}
	if got := a.metric(t, "session_dropped_total", "notices_full"); got < maxNotices {
		t.Errorf("%v dropped", got)
	}
	eventually(t, "the rest to be given up", func() bool {
		return a.metric(t, "session_dropped_total", "notices_full")+a.metric(t, "session_dropped_total", "notice_lost") == 3*maxNotices
	})
	proxy.Resume()
}

// Whatever happens, Close ends in time, and with a deadline sooner.
func TestCloseWithAStalledRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := pair(t, at("redis://"+proxy.Addr()), nil)
	proxy.Stall()
	for range 2000 {
		_, s := a.New("ada")
		a.End(s)
		a.tell("node-b", message.Notice{Kind: message.NoticeLive})
		a.does(message.PresenceJoined, "lobby", "ada")
	}
	began := time.Now()
	if err := a.Close(within(t, patience)); err != nil {
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
		if !slices.Equal(got, want) || largest > backlogBatch {
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
func TestTheSpaceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, 1, nil)[0]
		m := p.space.(*member)
		m.most, m.mostBytes = 1000, 1<<20
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
		if got := p.try(t, oldest, true); got != message.SaveMissing {
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
		if len(m.sessions) != 1 || m.saved.Len() != 1 {
			t.Errorf("%d sessions, %d in order", len(m.sessions), m.saved.Len())
		}
	})
}

func TestASlowListenerOfASpaceLosesNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := bubble(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(time.Second)
		stuck := make(chan struct{})
		b.hooks.Store(&Hooks{Status: b.tellStatus, Notify: func(message.Notice) { <-stuck }})
		for i := range 3 * memoryInbox {
			a.space.send(t.Context(), []letter{{"node-1", fmt.Appendf(nil, `{"from":"x","notices":[{"k":2,"g":%d}]}`, i)}})
		}
		if got := a.metric(t, "session_dropped_total", "notice_lost"); got < 2*memoryInbox-1 {
			t.Errorf("%v lost", got)
		}
		close(stuck)
	})
}
