package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// runRetention makes a round of retention, however short ago the last one was.
func (n *node) runRetention(f *fixture) {
	n.t.Helper()
	if f.pg != nil {
		f.pg.Exec(`UPDATE retention SET begun = '-infinity'`)
	}
	if err := n.retention().runOnce(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// fill appends so many messages to a room.
func (n *node) fill(room string, messages int) {
	n.t.Helper()
	var last *message.Publication
	for i := range messages {
		last = n.append(room, "ann", numbered("id", i+1), "x")
	}
	if wait(n.t, last); last.Err != nil {
		n.t.Fatal(last.Err)
	}
}

// readKept reads what is left of a room, and fails on a hole in it.
func (n *node) readKept(room string) (first, head message.Seq) {
	n.t.Helper()
	next := message.Seq(0)
	for {
		page, err := n.Read(n.t.Context(), message.Range{Room: message.Room(room), After: next, Limit: 500, MaxBytes: 1 << 20})
		if err != nil {
			n.t.Fatal(err)
		}
		if next == 0 {
			next = page.First - 1
		}
		for _, m := range page.Messages {
			if next++; m.Seq != next {
				n.t.Fatalf("%s has %d where %d should be", room, m.Seq, next)
			}
		}
		if !page.More {
			if next != page.Head {
				n.t.Fatalf("%s ends with %d, its head is %d", room, next, page.Head)
			}
			return page.First, page.Head
		}
	}
}

func (n *node) expectKept(room string, first, head message.Seq) {
	n.t.Helper()
	if f, h := n.readKept(room); f != first || h != head {
		n.t.Errorf("%s holds %d to %d, want %d to %d", room, f, h, first, head)
	}
}

// ageMessages moves the messages of a room up to a seq into the past.
func (f *fixture) ageMessages(room string, upTo int, by time.Duration) {
	f.t.Helper()
	if f.pg != nil {
		f.pg.Exec(fmt.Sprintf(`UPDATE messages SET at = at - interval '%d s' WHERE seq <= %d AND room_id = (SELECT id FROM rooms WHERE name = '%s')`,
			int(by.Seconds()), upTo, room))
		return
	}
	f.exec(fmt.Sprintf(`UPDATE messages SET at = at - %d WHERE seq <= %d AND room_id = (SELECT id FROM rooms WHERE name = '%s')`,
		by.Microseconds(), upTo, room))
}

func TestRetentionByCount(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		reg := prometheus.NewRegistry()
		n := f.startNode(func(c *Config) { c.RetentionCount, c.Registerer = 100, reg })
		n.fill("long", 2345) // some steps of each dialect
		n.fill("full", 100)
		n.fill("short", 3)
		n.runRetention(f)
		n.expectKept("long", 2246, 2345)
		n.expectKept("full", 1, 100)
		n.expectKept("short", 1, 3)
		if p := n.mustPublish("long", "id-1", "x"); !p.Duplicate || p.Seq != 1 {
			t.Errorf("an id was forgotten with its message: %+v", p)
		}
		if p := n.publish("long", "ann", "id-2", "other"); !errors.Is(p.Err, message.ErrConflict) {
			t.Errorf("a removed id with other data: %v", p.Err)
		}
		n.mustPublish("full", "next", "x")
		n.runRetention(f)
		n.expectKept("full", 2, 101)
		page, err := n.Read(t.Context(), message.Range{Room: "long", Before: 2246, Limit: 5, MaxBytes: 100})
		if err != nil || page.First != 2246 || page.Head != 2345 || len(page.Messages) != 0 || page.More {
			t.Errorf("below the first: %+v, %v", page, err)
		}
		if got, want := testutil.CollectAndCount(reg, "store_trimmed_messages_total"), 1; got != want {
			t.Errorf("%d series count what was trimmed", got)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP store_trimmed_messages_total Messages that this node removed because retention keeps them no longer.
# TYPE store_trimmed_messages_total counter
store_trimmed_messages_total 2246
`), "store_trimmed_messages_total"); err != nil {
			t.Error(err)
		}
	})
}

func TestRetentionByAge(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionAge = time.Hour })
		n.fill("room", 50)
		n.fill("all", 20)
		f.ageMessages("room", 30, time.Hour+time.Minute)
		f.ageMessages("all", 20, time.Hour+time.Minute)
		n.runRetention(f)
		n.expectKept("room", 31, 50)
		// A room whose last message is gone still knows how far it had come.
		n.expectKept("all", 21, 20)
		if p := n.mustPublish("all", "next", "x"); p.Seq != 21 {
			t.Errorf("after all was removed: %+v", p)
		}
		n.expectKept("all", 21, 21)
		rooms, _, err := n.ListRooms(t.Context(), "", "", 10)
		if err != nil || len(rooms) != 2 || rooms[1].First != 31 || rooms[1].Head != 50 {
			t.Errorf("listed are %+v, %v", rooms, err)
		}
		n.runRetention(f)
		n.expectKept("room", 31, 50)
	})
}

func TestRetentionByBothKeepsWhatBothKeep(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionAge, c.RetentionCount = time.Hour, 30 })
		n.fill("age", 50)
		n.fill("count", 50)
		f.ageMessages("age", 40, 2*time.Hour)
		f.ageMessages("count", 10, 2*time.Hour)
		n.runRetention(f)
		n.expectKept("age", 41, 50)
		n.expectKept("count", 21, 50)
	})
}

func TestWithoutBoundsOnlyCanaryRoomsAreTrimmed(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		for _, room := range []string{"room", "_canary.a", "_canary.b", "_canarybird", "_other"} {
			n.fill(room, 25)
		}
		n.fill("_canary.young", 10)
		n.runRetention(f)
		n.expectKept("room", 1, 25)
		n.expectKept("_canary.a", 16, 25)
		n.expectKept("_canary.b", 16, 25)
		n.expectKept("_canary.young", 1, 10)
		n.expectKept("_canarybird", 1, 25)
		n.expectKept("_other", 1, 25)
		// A rule for all rooms leaves the canaries theirs.
		n.close()
		n = f.startNode(func(c *Config) { c.RetentionCount = 5 })
		n.mustPublish("_canary.b", "next", "x")
		n.runRetention(f)
		n.expectKept("_canary.b", 17, 26)
		n.expectKept("_other", 21, 25)
	})
}

// Rooms that are due lie at the beginning, in the middle and at the end of
// more rooms than one step of the walk looks at.
func TestAWalkVisitsAllRooms(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionCount = 5 })
		n.fill("first", 7)
		for i := range 4 {
			lines := make([]string, 256)
			for j := range lines {
				lines[j] = fmt.Sprintf("room-%d id x", i*256+j)
			}
			n.mustAppendBatch(lines...)
			if i == 1 {
				n.fill("middle", 8)
			}
		}
		n.fill("last", 9)
		n.runRetention(f)
		n.expectKept("first", 3, 7)
		n.expectKept("middle", 4, 8)
		n.expectKept("last", 5, 9)
		if rooms, more, err := n.ListRooms(t.Context(), "room-", "", 1000); err != nil || !more || rooms[999].First != 1 {
			t.Errorf("%v", err)
		}
	})
}

// Whoever reads and publishes meanwhile sees a room that begins later from one
// moment to the next, and nothing else.
func TestReadingAndPublishingWhileRetentionRuns(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionCount = 50 })
		n.fill("room", 3000)
		ctx, stop := context.WithCancel(t.Context())
		var background sync.WaitGroup
		published := 0
		background.Go(func() {
			for ; ctx.Err() == nil; published++ {
				if p := n.publish("room", "bob", numbered("id", published), "x"); p.Err != nil || p.Seq != message.Seq(3001+published) {
					t.Errorf("%+v", p)
				}
			}
		})
		pages, moves := 0, 0
		begun := make(chan struct{})
		background.Go(func() {
			for last := message.Seq(0); ctx.Err() == nil; pages++ {
				page, err := n.Read(t.Context(), message.Range{Room: "room", Limit: 20, MaxBytes: 1 << 20})
				if err != nil {
					t.Error(err)
					return
				}
				if page.First > last {
					if moves++; moves == 1 {
						close(begun)
					}
				}
				if last = page.First; len(page.Messages) != 20 {
					t.Errorf("a page of %d messages", len(page.Messages))
				}
				for i, m := range page.Messages {
					if m.Seq != page.First+message.Seq(i) {
						t.Errorf("first is %d, and number %d of the page is %d", page.First, i, m.Seq)
					}
				}
			}
		})
		select {
		case <-begun:
		case <-time.After(testTimeout):
			t.Fatal("nothing was read")
		}
		n.runRetention(f)
		n.runRetention(f) // what came in meanwhile
		stop()
		background.Wait()
		if published == 0 || moves < 2 {
			t.Errorf("%d published, %d pages in %d states: the test shows little", published, pages, moves)
		}
		if _, head := n.readKept("room"); head != message.Seq(3000+published) {
			t.Errorf("the head is %d", head)
		}
	})
}

func TestRetentionContinuesWhereItWasInterrupted(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		count := func(c *Config) { c.RetentionCount = 10 }
		n := f.startNode(count)
		for i := range 4 {
			n.fill(numbered("room", i), 1100)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.retention().runOnce(ctx) }()
		eventually(t, "the first room is begun", func() error {
			page, err := n.Read(t.Context(), message.Range{Room: "room-0"})
			if err == nil && page.First == 1 {
				err = errors.New("not yet")
			}
			return err
		})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("it was over before it was interrupted: %v", err)
		}
		n.close()
		n = f.startNode(count)
		n.runRetention(f)
		for i := range 4 {
			n.expectKept(numbered("room", i), 1091, 1100)
		}
	})
}

func TestNodesShareAWalk(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	count := func(c *Config) { c.RetentionCount = 5 }
	a, b := f.startNode(count), f.startNode(count)
	a.mustPublish("another", "id", "x")
	a.fill("room", 7)
	a.runRetention(f)
	a.mustPublish("room", "next", "x")
	if err := b.retention().runOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.expectKept("room", 3, 8) // b knows that a has walked just now
	// One that died in the middle of a walk: another goes on from there.
	f.pg.Exec(`UPDATE retention SET walked = (SELECT id FROM rooms WHERE name = 'room') - 1, begun = now()`)
	if err := b.retention().runOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.expectKept("room", 4, 8)
	if got := f.pg.Query(`SELECT walked FROM retention`); got != "0" {
		t.Errorf("after the walk the next one begins at %s", got)
	}
}

// A batch that hangs in a room holds up neither retention of other rooms nor,
// by way of retention, anybody else.
func TestRetentionSkipsALockedRoom(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.RetentionCount = 5 })
	n.fill("held", 10)
	n.fill("room", 10)
	release := f.lockRoom("held")
	began := time.Now()
	n.runRetention(f)
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	n.expectKept("held", 1, 10)
	n.expectKept("room", 6, 10)
	release()
	n.runRetention(f)
	n.expectKept("held", 6, 10)
}

// The row of the room changes while a trim waits for it: what it then writes
// must leave the new head alone.
func TestATrimThatWaitedForABatchKeepsTheNewHead(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.RetentionCount = 5 })
	n.fill("room", 10)
	tx, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`UPDATE rooms SET head = 11 WHERE name = 'room'`,
		`INSERT INTO messages SELECT id, 11, now(), 'id', '', 'x' FROM rooms WHERE name = 'room'`,
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		removed, err := n.logUnderTest.(*Postgres).trim(t.Context(), "room", retentionPolicy{count: 5})
		if removed != 5 {
			err = errors.Join(err, fmt.Errorf("%d were removed", removed))
		}
		done <- err
	}()
	f.waitForBlockedBackends(1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n.expectKept("room", 6, 11)
}
