package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A model is the log in memory, as documented.
type model struct {
	rooms map[message.Room][]message.Draft
	ids   map[idKey]message.Seq
}

// append returns what the log must answer: a seq, and whether the message is a
// duplicate, or a conflict.
func (m *model) append(d message.Draft) (seq message.Seq, duplicate, conflict bool) {
	k := idKey{string(d.Room), d.From, d.ID}
	if seq := m.ids[k]; seq > 0 {
		same := string(m.rooms[d.Room][seq-1].Data) == string(d.Data)
		return seq, same, !same
	}
	m.rooms[d.Room] = append(m.rooms[d.Room], d)
	m.ids[k] = message.Seq(len(m.rooms[d.Room]))
	return m.ids[k], false, false
}

// Random messages with few rooms, users, ids and data collide in every way
// within and between batches, and the log must answer as the model does.
func TestTheLogBehavesLikeItsModel(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		m := &model{rooms: map[message.Room][]message.Draft{}, ids: map[idKey]message.Seq{}}
		var nodes []*node
		for range f.maxNodes {
			nodes = append(nodes, f.startNode(func(c *Config) { c.AppendWorkers = 2 }))
		}
		for range 40 {
			// One node a round, since the log promises no order between nodes.
			n := nodes[r.IntN(len(nodes))]
			var pubs []*message.Publication
			for range 1 + r.IntN(60) {
				pubs = append(pubs, n.append(numbered("room", r.IntN(3)), []string{"", "ann"}[r.IntN(2)],
					numbered("id", r.IntN(150)), numbered("data", r.IntN(10)/9)))
			}
			for _, p := range pubs {
				wait(t, p)
				seq, duplicate, conflict := m.append(p.Draft)
				switch {
				case conflict != errors.Is(p.Err, message.ErrConflict), !conflict && p.Err != nil:
					t.Fatalf("%+v: %v, want conflict %v", p.Draft, p.Err, conflict)
				case !conflict && (p.Seq != seq || p.Duplicate != duplicate):
					t.Fatalf("%+v: seq %d duplicate %v, want %d and %v", p.Draft, p.Seq, p.Duplicate, seq, duplicate)
				}
			}
		}
		for room, drafts := range m.rooms {
			all := nodes[0].readAll(string(room))
			if len(all) != len(drafts) {
				t.Fatalf("%s has %d messages, want %d", room, len(all), len(drafts))
			}
			for i, d := range drafts {
				if got := fmt.Sprintf("%+v", all[i].Draft); got != fmt.Sprintf("%+v", d) {
					t.Errorf("%s %d is %s, want %+v", room, i+1, got, d)
				}
			}
		}
	})
}

// Each message has a room of its own, so that no later message hides a commit
// that the feed skipped.
func TestTheFeedReportsEveryCommit(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		const each = 150
		var nodes []*node
		for range f.maxNodes {
			nodes = append(nodes, f.startNode(func(c *Config) { c.AppendWorkers, c.MaxConns = 4, 12 }))
		}
		epoch, cursor := nodes[0].epoch(), nodes[0].currentCursor()
		for i, n := range nodes {
			for j := range each {
				n.append(numbered(numbered("room", i), j), "", "id", "x")
			}
		}
		reported := map[message.Room]bool{}
		testkit.EventuallyNil(t, "the feed reports every room", func() error {
			c, err := nodes[len(nodes)-1].Commits(t.Context(), cursor)
			if err != nil {
				return err
			}
			if c.Incomplete || c.Epoch != epoch {
				t.Fatalf("from %s: %+v", cursor, c)
			}
			cursor = c.Next
			for _, h := range c.Heads {
				if reported[h.Room] {
					t.Errorf("%s was reported twice", h.Room)
				}
				reported[h.Room] = true
			}
			if len(reported) < each*len(nodes) {
				return fmt.Errorf("%d of %d rooms", len(reported), each*len(nodes))
			}
			return nil
		})
	})
}

// A page from two snapshots would have a head below its own messages, or a hole
// before its head.
func TestAPageIsASnapshot(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		published := make(chan struct{})
		go func() {
			defer close(published)
			var p *message.Publication
			for i := range 600 {
				p = n.append("room", "", numbered("id", i), "x")
			}
			<-p.Opaque.(chan struct{}) // completed within AppendTimeout
		}()
		for done := false; !done; {
			select {
			case <-published:
				done = true // after one more page
			default:
			}
			page, err := n.Read(t.Context(), message.Range{Room: "room", Before: 1 << 40, Limit: 50, MaxBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range page.Messages {
				if want := page.Head - message.Seq(len(page.Messages)-1-i); m.Seq != want {
					t.Fatalf("with head %d and %d messages, message %d has seq %d", page.Head, len(page.Messages), i, m.Seq)
				}
			}
			if done && page.Head < 50 {
				t.Errorf("only %d messages were stored meanwhile", page.Head)
			}
		}
	})
}
