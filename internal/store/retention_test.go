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

// runRetention trims all rooms, even if the last walk was a moment ago.
func (n *node) runRetention(f *fixture) {
	n.t.Helper()
	if f.pg != nil {
		f.pg.Exec(`UPDATE retention SET begun = '-infinity'`)
	}
	if err := n.retention().runOnce(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// fill appends that many messages to a room.
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

// readKept reads what a room has kept, and fails on a hole in it.
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
				n.t.Fatalf("%s has seq %d, want %d", room, m.Seq, next)
			}
		}
		if !page.More {
			if next != page.Head {
				n.t.Fatalf("%s ends with seq %d, and its head is %d", room, next, page.Head)
			}
			return page.First, page.Head
		}
	}
}

func (n *node) expectKept(room string, first, head message.Seq) {
	n.t.Helper()
	if f, h := n.readKept(room); f != first || h != head {
		n.t.Errorf("%s has %d to %d, want %d to %d", room, f, h, first, head)
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
		head := 2*n.retention().trimLimit + 123 // two full steps and a partial one, less the 100 kept
		n.fill("long", head)
		n.fill("full", 100)
		n.fill("short", 3)
		n.runRetention(f)
		n.expectKept("long", message.Seq(head-99), message.Seq(head))
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
		page, err := n.Read(t.Context(), message.Range{Room: "long", Before: message.Seq(head - 99), Limit: 5, MaxBytes: 100})
		if err != nil || page.First != message.Seq(head-99) || page.Head != message.Seq(head) || len(page.Messages) != 0 || page.More {
			t.Errorf("below the first: %+v, %v", page, err)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(fmt.Sprintf(`
# HELP store_trimmed_messages_total Messages that this node removed because retention keeps them no longer.
# TYPE store_trimmed_messages_total counter
store_trimmed_messages_total %d
`, head-100+1)), "store_trimmed_messages_total"); err != nil {
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
		// A room whose messages were all removed keeps its head.
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
		// A bound for all rooms does not apply to canary rooms.
		n.close()
		n = f.startNode(func(c *Config) { c.RetentionCount = 5 })
		n.mustPublish("_canary.b", "next", "x")
		n.runRetention(f)
		n.expectKept("_canary.b", 17, 26)
		n.expectKept("_other", 21, 25)
	})
}

// Rooms to trim are at the beginning, in the middle and at the end of more rooms
// than one step of the walk inspects.
func TestAWalkVisitsAllRooms(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionCount = 5 })
		n.fill("first", 7)
		f.createRooms("room-a-", 600)
		n.fill("middle", 8)
		f.createRooms("room-b-", 600)
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

// While retention runs, readers and publishers see the first message of a room
// move from one step to the next, and notice nothing else.
func TestReadingAndPublishingWhileRetentionRuns(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode(func(c *Config) { c.RetentionCount = 50 })
		filled := 3 * n.retention().trimLimit
		n.fill("room", filled)
		ctx, stop := context.WithCancel(t.Context())
		var background sync.WaitGroup
		published := 0
		background.Go(func() {
			for ; ctx.Err() == nil; published++ {
				if p := n.publish("room", "bob", numbered("id", published), "x"); p.Err != nil || p.Seq != message.Seq(filled+1+published) {
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
		testkit.Receive(t, "the first read", begun)
		n.runRetention(f)
		n.runRetention(f) // trims the messages published during the first
		stop()
		background.Wait()
		if published == 0 || moves < 2 {
			t.Errorf("%d published, %d pages in %d states: the test proves little", published, pages, moves)
		}
		if _, head := n.readKept("room"); head != message.Seq(filled+published) {
			t.Errorf("the head is %d", head)
		}
	})
}

// An interruptedTrimmer calls interrupt after its first trim.
type interruptedTrimmer struct {
	trimmer
	interrupt func()
}

func (i interruptedTrimmer) trim(ctx context.Context, room message.Room, policy retentionPolicy) (int, error) {
	n, err := i.trimmer.trim(ctx, room, policy)
	i.interrupt()
	return n, err
}

func TestRetentionContinuesWhereItWasInterrupted(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		count := func(c *Config) { c.RetentionCount = 10 }
		n := f.startNode(count)
		r := n.retention()
		head := r.trimLimit + 20 // more than one trim for the first room
		n.fill("room-0", head)
		n.fill("room-1", 20)
		ctx, cancel := context.WithCancel(t.Context())
		r.trimmer = interruptedTrimmer{r.trimmer, cancel}
		if err := r.runOnce(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("the interrupted run returned %v", err)
		}
		n.expectKept("room-0", message.Seq(r.trimLimit+1), message.Seq(head))
		n.expectKept("room-1", 1, 20)
		n.close()
		n = f.startNode(count)
		n.runRetention(f)
		n.expectKept("room-0", message.Seq(head-9), message.Seq(head))
		n.expectKept("room-1", 11, 20)
	})
}

func TestNodesShareAWalk(t *testing.T) {
	t.Parallel()
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
	a.expectKept("room", 3, 8) // b skips the walk that a has just completed
	// A node died in the middle of a walk, and another continues it.
	f.pg.Exec(`UPDATE retention SET walked = (SELECT id FROM rooms WHERE name = 'room') - 1, begun = now()`)
	if err := b.retention().runOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.expectKept("room", 4, 8)
	if got := f.pg.Query(`SELECT walked FROM retention`); got != "0" {
		t.Errorf("the next walk begins at %s, want 0", got)
	}
}

// A room that another transaction has locked does not delay the retention of
// other rooms.
func TestRetentionSkipsALockedRoom(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.RetentionCount = 5 })
	n.fill("locked", 10)
	n.fill("room", 10)
	release := f.lockRoom("locked")
	n.runRetention(f)
	n.expectKept("locked", 1, 10)
	n.expectKept("room", 6, 10)
	release()
	n.runRetention(f)
	n.expectKept("locked", 6, 10)
}

// A trim gives a locked room up by its own bound, however long other statements
// may wait for a lock: it must not hold its connection for the whole of that.
func TestATrimWaitsForALockedRoomByItsOwnBound(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) {
		c.RetentionCount, c.lockTimeout, c.AppendTimeout = 5, testkit.Timeout, testkit.Timeout
	})
	n.fill("held", 10)
	release := f.lockRoom("held")
	defer release()
	_, err := n.logUnderTest.(*Postgres).trim(t.Context(), "held", retentionPolicy{count: 5})
	if err == nil || !strings.Contains(err.Error(), "locked the room") {
		t.Errorf("error %v, want one that says that the room is locked", err)
	}
	if trimWait != 200*time.Millisecond {
		t.Errorf("a trim waits for %v, want 200 ms", trimWait)
	}
}

// The room's row changes while a trim waits for it. The trim must not overwrite
// the new head.
func TestATrimThatWaitedForABatchKeepsTheNewHead(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.RetentionCount, c.trimWait = 5, testkit.Timeout })
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
