package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/message"
)

func TestRoomsAreNumberedWithoutHoles(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		const publishers, messages, rooms = 8, 60, 5
		var nodes []*node
		for range f.maxNodes {
			nodes = append(nodes, f.startNode(func(c *Config) { c.AppendWorkers = 3 }))
		}
		var done sync.WaitGroup
		for i := range publishers {
			done.Go(func() {
				n := nodes[i%len(nodes)]
				var last [rooms]*message.Publication
				for j := range messages {
					last[j%rooms] = n.append(numbered("room", j%rooms), numbered("user", i), numbered("id", j), numbered("data", j))
				}
				for _, p := range last {
					wait(t, p)
				}
			})
		}
		done.Wait()
		for r := range rooms {
			all := nodes[0].readAll(numbered("room", r))
			if len(all) != publishers*messages/rooms {
				t.Errorf("room %d has %d messages", r, len(all))
			}
			next := map[string]int{}
			for i, m := range all {
				// Each publisher's messages are stored in the order it sent them.
				if want := numbered("id", next[m.From]*rooms+r); m.ID != want {
					t.Fatalf("%s has %s, want %s", m.From, m.ID, want)
				}
				if want := "data" + strings.TrimPrefix(m.ID, "id"); string(m.Data) != want {
					t.Errorf("%s holds %s", m.ID, m.Data)
				}
				next[m.From]++
				if i > 0 && m.At.Before(all[i-1].At) {
					t.Errorf("the time of room %d decreases at seq %d", r, m.Seq)
				}
			}
		}
	})
}

func TestAnIDIsStoredOnceAcrossNodes(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		var nodes []*node
		for range f.maxNodes {
			nodes = append(nodes, f.startNode())
		}
		for i := range 50 {
			id := numbered("id", i)
			// In one batch (the first node sends it twice) and in batches of
			// several nodes at the same time.
			pubs := []*message.Publication{nodes[0].append("room", "ann", id, "same")}
			for _, n := range nodes {
				pubs = append(pubs, n.append("room", "ann", id, "same"))
			}
			first := 0
			for _, p := range pubs {
				if wait(t, p); p.Err != nil {
					t.Fatal(p.Err)
				}
				if p.Seq != message.Seq(i+1) || p.Epoch == "" || !p.At.Equal(pubs[0].At) {
					t.Errorf("%s got seq %d, epoch %q, at %v", id, p.Seq, p.Epoch, p.At)
				}
				if !p.Duplicate {
					first++
				}
			}
			if first != 1 {
				t.Errorf("%s: %d answers are not duplicates, want 1", id, first)
			}
		}
		if all := nodes[0].readAll("room"); len(all) != 50 {
			t.Errorf("%d messages are stored, want 50", len(all))
		}
	})
}

func TestAnIDBelongsToItsUserAndRoom(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		first := n.mustPublish("room", "id", `{"n":1}`)
		if again := n.mustPublish("room", "id", `{"n":1}`); !again.Duplicate || again.Seq != first.Seq || !again.At.Equal(first.At) {
			t.Errorf("the first: %+v, the resend: %+v", first, again)
		}
		if p := n.publish("room", "ann", "id", `{"n":2}`); !errors.Is(p.Err, message.ErrConflict) {
			t.Errorf("other data under the same id: %v", p.Err)
		}
		if p := n.publish("room", "bob", "id", `{"n":2}`); p.Err != nil || p.Duplicate || p.Seq != 2 {
			t.Errorf("another user's id: %+v", p)
		}
		if p := n.publish("other", "ann", "id", `{"n":3}`); p.Err != nil || p.Duplicate || p.Seq != 1 {
			t.Errorf("another room's id: %+v", p)
		}
	})
}

func TestConflictInOneBatch(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.openNode()
		a, b, c := n.append("room", "", "id", "1"), n.append("room", "", "id", "2"), n.append("room", "", "id", "1")
		n.start()
		if wait(t, a); a.Err != nil || a.Duplicate || a.Seq != 1 {
			t.Errorf("the first: %+v", a)
		}
		if wait(t, b); !errors.Is(b.Err, message.ErrConflict) {
			t.Errorf("the second: %v", b.Err)
		}
		if wait(t, c); c.Err != nil || !c.Duplicate || c.Seq != 1 {
			t.Errorf("the third: %+v", c)
		}
	})
}

func TestAConflictInABatchDoesNotAffectAResend(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		before := f.startNode()
		before.mustPublish("room", "id", "mine")
		before.close()
		n := f.openNode()
		conflicting, resend := n.append("room", "ann", "id", "other"), n.append("room", "ann", "id", "mine")
		n.start()
		if wait(t, conflicting); !errors.Is(conflicting.Err, message.ErrConflict) {
			t.Errorf("the conflict: %v", conflicting.Err)
		}
		if wait(t, resend); resend.Err != nil || !resend.Duplicate || resend.Seq != 1 {
			t.Errorf("the resend: %+v", resend)
		}
	})
}

func TestAPoisonMessageIsRejectedAloneInItsBatch(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.openNode()
		f.rejectPoison()
		var pubs []*message.Publication
		for i := range 256 {
			data := numbered("data", i)
			if i == 97 {
				data = "poison"
			}
			pubs = append(pubs, n.append("room", "", numbered("id", i), data))
		}
		n.start()
		for i, p := range pubs {
			if wait(t, p); i == 97 {
				if !errors.Is(p.Err, message.ErrRejected) {
					t.Errorf("the poison message: %v", p.Err)
				}
			} else if p.Err != nil {
				t.Errorf("%d: %v", i, p.Err)
			}
		}
		all := n.readAll("room")
		if len(all) != 255 {
			t.Fatalf("%d are stored, want 255", len(all))
		}
		for i, m := range all {
			if i >= 97 {
				i++
			}
			if m.ID != numbered("id", i) {
				t.Fatalf("stored is %s, want %s", m.ID, numbered("id", i))
			}
		}
		if err := n.Check(); err != nil {
			t.Errorf("after a poison message Check returns %v", err)
		}
	})
}

func TestDataIsStoredByteForByte(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		for i, data := range []string{
			`"\u0000"`, `123456789012345678901234567890.10e+2`, " {\t\"b\" :1,\r\n \"a\": 1 ,\"a\":2}\n", `"` + "\u2028é\U0001F600" + `"`,
			`"\ud800"`, `""`, `null`, "", `"` + strings.Repeat("x", 200_000) + `"`,
		} {
			n.mustPublish("room", numbered("id", i), data)
			all := n.readAll("room")
			if got := string(all[len(all)-1].Data); got != data {
				t.Errorf("%.60q came back as %.60q", data, got)
			}
		}
	})
}

func TestAnonymousUsersAreOneUser(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		n.publish("room", "", "id", "1")
		if p := n.publish("room", "", "id", "1"); !p.Duplicate {
			t.Errorf("%+v", p)
		}
		if m := n.readAll("room")[0]; m.From != "" || m.ID != "id" || m.Room != "room" || m.Epoch != n.epoch() {
			t.Errorf("%+v", m)
		}
	})
}

func TestHistoryIsReadInPages(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		for i := 1; i <= 10; i++ {
			n.mustPublish("room", numbered("id", i), strings.Repeat("x", 10))
		}
		n.mustPublish("other", "id", "y")
		for _, c := range []struct {
			request message.Range
			want    string
			more    bool
		}{
			{message.Range{Limit: 3, MaxBytes: 1000}, "1 2 3", true},
			{message.Range{After: 7, Limit: 3, MaxBytes: 1000}, "8 9 10", false},
			{message.Range{After: 7, Limit: 9, MaxBytes: 1000}, "8 9 10", false},
			{message.Range{After: 10, Limit: 9, MaxBytes: 1000}, "", false},
			{message.Range{After: 99, Limit: 9, MaxBytes: 1000}, "", false},
			{message.Range{Before: 5, Limit: 3, MaxBytes: 1000}, "2 3 4", true},
			{message.Range{Before: 4, Limit: 3, MaxBytes: 1000}, "1 2 3", false},
			{message.Range{Before: 1, Limit: 3, MaxBytes: 1000}, "", false},
			{message.Range{Before: 99, Limit: 2, MaxBytes: 1000}, "9 10", true},
			{message.Range{After: 2, Limit: 9, MaxBytes: 30}, "3 4 5", true},
			{message.Range{After: 2, Limit: 9, MaxBytes: 29}, "3 4", true},
			{message.Range{Before: 9, Limit: 9, MaxBytes: 25}, "7 8", true},
			{message.Range{After: 2, Limit: 9, MaxBytes: 1}, "3", true},
			{message.Range{Before: 9, Limit: 9, MaxBytes: 1}, "8", true},
			{message.Range{After: 9, Limit: 9, MaxBytes: 1}, "10", false},
		} {
			c.request.Room = "room"
			page, err := n.Read(t.Context(), c.request)
			if err != nil {
				t.Fatal(err)
			}
			var seqs []string
			for _, m := range page.Messages {
				seqs = append(seqs, fmt.Sprint(m.Seq))
			}
			if got := strings.Join(seqs, " "); got != c.want || page.More != c.more {
				t.Errorf("%+v: got %q more %v, want %q more %v", c.request, got, page.More, c.want, c.more)
			}
			if page.Head != 10 || page.First != 1 || page.Epoch == "" {
				t.Errorf("%+v: head %d first %d epoch %q", c.request, page.Head, page.First, page.Epoch)
			}
		}
	})
}

func TestHeadsAndUnknownRooms(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		n.mustPublish("a", "1", "x")
		n.mustPublish("a", "2", "x")
		n.mustPublish("B", "1", "x")
		epoch, heads, err := n.Heads(t.Context(), []message.Room{"a", "nobody", "B", "a"})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(heads); got != "[{a 2} {nobody 0} {B 1} {a 2}]" || epoch != n.epoch() {
			t.Errorf("heads %s in epoch %s", got, epoch)
		}
		page, err := n.Read(t.Context(), message.Range{Room: "a"})
		if err != nil || page.Head != 2 || page.First != 1 || page.Messages != nil || page.Epoch != epoch {
			t.Errorf("limit 0 reads %+v, %v", page, err)
		}
		page, err = n.Read(t.Context(), message.Range{Room: "nobody", Limit: 5, MaxBytes: 100})
		if err != nil || page.Head != 0 || page.First != 1 || len(page.Messages) != 0 || page.More || page.Epoch != epoch {
			t.Errorf("an unknown room reads as %+v, %v", page, err)
		}
	})
}

func TestTheFeedReportsCommits(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		n.mustPublish("before", "1", "x")
		cursor := n.currentCursor()
		n.mustPublish("a", "1", "x")
		n.mustPublish("a", "2", "x")
		n.mustPublish("b", "1", "x")
		c, err := n.Commits(t.Context(), cursor)
		if err != nil || c.Incomplete {
			t.Fatalf("%+v, %v", c, err)
		}
		heads := map[message.Room]message.Seq{}
		for _, h := range c.Heads {
			if _, twice := heads[h.Room]; twice {
				t.Errorf("%s is reported twice", h.Room)
			}
			heads[h.Room] = h.Seq
		}
		if heads["a"] != 2 || heads["b"] != 1 || heads["before"] != 0 {
			t.Errorf("the feed reports %v", heads)
		}
		n.mustPublish("a", "2", "x") // a duplicate commits nothing
		if c, err = n.Commits(t.Context(), c.Next); err != nil || len(c.Heads) != 0 || c.Incomplete {
			t.Errorf("the feed reports more: %+v, %v", c, err)
		}
		later := map[bool]message.Cursor{true: feedCursor{snapshot: "1000000000:1000000000:", origin: f.origin()}.encode(), false: "1000000"}
		if c, err = n.Commits(t.Context(), later[f.pg != nil]); err != nil || !c.Incomplete {
			t.Errorf("a cursor of another epoch: %+v, %v", c, err)
		}
		if c, err = n.Commits(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), `cursor "x"`) {
			t.Errorf("a cursor of no log: %+v, %v", c, err)
		}
	})
}
