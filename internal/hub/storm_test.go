package hub

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

const (
	// readLatency is how long one read of the log takes in a storm.
	readLatency = 5 * time.Millisecond
	// goroutineSlack is how many goroutines may run besides those that a storm
	// starts.
	goroutineSlack = 100

	// The bounds of DESIGN.md and docs/limits.md.
	documentedReads       = 8 // concurrent reads of the log
	documentedReadsOfKind = 6
	documentedFeed        = 250 * time.Millisecond
	documentedHeads       = 500 // rooms in one query for heads
)

var longStorms = flag.Bool("storm.long", false, "run the storm tests with five times as many rooms and members, about a minute")

// scaled returns n, or five times as many with -storm.long.
func scaled(n int) int {
	if *longStorms {
		return 5 * n
	}
	return n
}

// storm runs a scenario in which the same thing happens to many rooms or
// members at once, on one node with the service's bounds. Time is virtual: a
// test counts reads, bytes, goroutines and the time that is spent waiting for
// the log.
func storm(t *testing.T, run func(c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{t: t, sim: newSimulation(defaultBounds(0), 1, 0, 0)}
		defer c.sim.close()
		defer c.closeAll()
		c.logView().set(func() { c.logView().delay = readLatency })
		run(c)
	})
}

func (c *crowd) logView() *logView { return c.sim.logViews[0] }

// setFeed switches the commit feed on or off.
func (c *crowd) setFeed(on bool) {
	c.logView().set(func() { c.logView().feedDown = !on })
	if !on {
		time.Sleep(time.Second) // a read in progress still succeeds
	}
}

func testRoom(i int) message.Room { return message.Room(fmt.Sprintf("r%d", i)) }

// After an outage of the feed that is longer than the feed reaches back, a node
// compares heads by name, page by page, and reads each room once.
func TestStormManyRoomsAfterALongFeedOutage(t *testing.T) {
	storm(t, func(c *crowd) {
		rooms := scaled(1000)
		for i := range rooms {
			c.addMember(testRoom(i), -1)
		}
		k := c.waitAllAt(0)
		c.expectAtMost("reads to open", k.reads, rooms)
		before := heapInUse()
		c.setFeed(false)
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 3, 100)
		}
		c.sim.log.pruneFeed(0) // the feed no longer reaches back to these
		c.setFeed(true)
		k = c.waitAllAt(3)
		c.expectAtMost("reads", k.reads, rooms)
		c.expectAtMost("reads at once", k.atOnce, documentedReadsOfKind)
		c.expectAtMost("queries of the feed", k.feedQueries, rooms/documentedHeads+int(k.took/documentedFeed)+2)
		c.expectAtMost("goroutines", k.goroutines, documentedReadsOfKind+goroutineSlack)
		c.expectAtMost("ms", int(k.took.Milliseconds()), rooms*5/documentedReadsOfKind+500)
		c.expectAtMost("bytes of rooms", heapInUse()-before, rooms*4<<10) // mostly rings
	})
}

// Many rooms miss a message at one moment: each costs one read, few run at once,
// and a join meanwhile does not wait behind them.
func TestStormManyRoomsRepairAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		rooms := scaled(1000)
		for i := range rooms {
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(0)
		c.setFeed(false)
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 1, 100) // lost
			c.sim.nodes[0].Completed(c.sim.log.commit(testRoom(i), 1, 100))
		}
		late := &crowd{t: t, sim: c.sim}
		defer late.closeAll()
		c.sim.log.commit("late", 1, 100)
		time.Sleep(100 * time.Millisecond) // now the queues are long
		late.addMember("late", 0)
		k := late.waitAllAt(1)
		c.expectAtMost("ms until a join is answered", int(k.took.Milliseconds()), 100)
		k = c.waitAllAt(2)
		c.expectAtMost("reads", k.reads, rooms)
		c.expectAtMost("reads at once", k.atOnce, documentedReads)
		c.expectAtMost("ms", int(k.took.Milliseconds()), rooms*5/documentedReadsOfKind+100)
	})
}

// While many rooms open, many members resume or many topics repair, reads of the
// other kinds do not wait: a hole is filled, a room opens, a page is read.
func TestStormNoReadWaitsBehindThoseOfAnotherKind(t *testing.T) {
	for _, kind := range []string{"opens", "pages", "repairs"} {
		t.Run(kind, func(t *testing.T) {
			storm(t, func(c *crowd) {
				rooms := scaled(600)
				l, h := c.sim.log, c.sim.nodes[0]
				l.commit("far", 1, 1) // before the topic opens: not in its ring
				live := &crowd{t: t, sim: c.sim}
				defer live.closeAll()
				live.addMember("far", -1)
				live.addMember("hole", -1)
				for i := range rooms {
					l.commit(testRoom(i), 1, 1)
					if kind != "opens" {
						live.addMember(testRoom(i), -1)
					}
				}
				time.Sleep(3 * time.Second)
				c.setFeed(false)
				for i := range rooms {
					switch kind {
					case "repairs":
						l.commit(testRoom(i), 1, 1)
						h.Completed(l.commit(testRoom(i), 1, 1))
					default:
						c.addMember(testRoom(i), 0)
					}
				}
				time.Sleep(100 * time.Millisecond) // now the queues are long
				l.commit("hole", 1, 1)
				h.Completed(l.commit("hole", 1, 1))
				late := &crowd{t: t, sim: c.sim}
				defer late.closeAll()
				if kind != "opens" {
					late.addMember("cold", 0)
				}
				if kind != "pages" {
					late.addMember("far", 0)
				}
				time.Sleep(20*time.Millisecond + 10*readLatency)
				if last, _ := live.outlets[1].progress(); kind != "repairs" && last != 2 {
					t.Error("the hole was not filled in time")
				}
				for i, o := range late.outlets {
					if _, joined := o.progress(); joined == 0 {
						t.Errorf("join %d was not answered in time", i)
					}
				}
			})
		})
	}
}

// After a restore of an older state the positions of every room are invalid. Each
// room costs one read, and the node logs one line, not one for each room.
func TestStormANewEpochInManyRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		rooms := scaled(1000)
		heads := map[message.Room]int{}
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 3, 1)
			c.addMember(testRoom(i), -1)
			heads[testRoom(i)] = 2
		}
		c.waitAllAt(3)
		c.sim.logLines.n.Store(0)
		c.sim.log.restore(heads)
		k := c.waitAllAt(2)
		c.expectAtMost("reads", k.reads, rooms)
		c.expectAtMost("reads at once", k.atOnce, documentedReadsOfKind)
		c.expectAtMost("logged lines", int(c.sim.logLines.n.Load()), 1)
	})
}

// A topic with many members falls behind by more than a page. The members read at
// their own pace, and share pages nevertheless. Afterwards only the room's ring is
// left of it.
func TestStormAHotRoomFallsBehind(t *testing.T) {
	storm(t, func(c *crowd) {
		members := scaled(2000)
		for i := range members {
			c.addMember("r", -1)
			c.outlets[i].flushDelay = time.Duration(i%500) * time.Millisecond
		}
		c.waitAllAt(0)
		warmGoroutines(members)
		c.setFeed(false)
		c.sim.log.commit("r", 250, 100)
		before := heapInUse()
		c.setFeed(true)
		k := c.waitAllAt(250)
		c.expectAtMost("reads", k.reads, 4) // one repair and two pages, of which one may be read again
		c.expectAtMost("goroutines", k.goroutines, members+goroutineSlack)
		time.Sleep(2 * pageCacheTTL)
		ring := int(c.sim.nodes[0].memory.rings.Load())
		c.expectAtMost("bytes of members afterwards", heapInUse()-before-ring, members*48)
	})
}

// Many clients resume from far behind in one room, and none of them reads: the
// same page is queued for all.
func TestStormManyClientsResumeAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		members := scaled(2000)
		c.sim.log.commit("r", 250, 1000)
		c.blocked = make(chan struct{})
		before := memoryInUse()
		c.readCounters(true)
		for range members {
			c.addMember("r", 0)
		}
		time.Sleep(5 * time.Second)
		c.expectAtMost("reads", c.readCounters(false).reads, 3) // the head, and a page that may be read again
		c.expectAtMost("bytes of members that do not read", memoryInUse()-before, members*8<<10)
		close(c.blocked)
		k := c.waitAllAt(250)
		c.expectAtMost("reads", k.reads, 3)
		c.expectAtMost("goroutines", k.goroutines, goroutineSlack) // besides the one that each member had
	})
}

// 352 rooms wait for a lost message while the log is slow, and 84 MB of later
// messages arrive. The reorder buffers share a budget; the rest is dropped and
// read from the log. A message that is in the inbox and in the reorder buffer at
// once is counted twice, so the limits may apply up to 59 messages before the
// budget is reached. After that each room buffers only one message more: 320
// rooms would not reach the budget.
func TestStormOfEarlyMessages(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms, n = 352, 60
		h := c.sim.nodes[0]
		for i := range rooms {
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(0)
		c.setFeed(false)
		c.logView().set(func() { c.logView().delay = 4 * time.Second })
		peak := int64(0)
		for i := range rooms {
			h.Completed(c.sim.log.commit(testRoom(i), n, 4000)[1:])
			c.sim.broker.dropAll()
			synctest.Wait()
			peak = max(peak, h.memory.undelivered.Load())
		}
		const budget, maxPerRoom, minPerRoom = 64 << 20, 512 << 10, 8 << 10 // DESIGN.md, Bounds
		c.expectAtMost("bytes in reorder buffers", int(peak), budget+maxPerRoom+rooms*minPerRoom)
		if peak < budget {
			t.Errorf("%d bytes were buffered: the budget was never reached", peak)
		}
		c.logView().set(func() { c.logView().delay = readLatency })
		k := c.waitAllAt(n)
		c.expectAtMost("reads", k.reads, 2*rooms) // one for the lost message, one for those that were dropped
	})
}

// A fullLog has a hundred messages of 4,000 bytes in every room.
type fullLog struct {
	*logView
	data []byte
}

func (l *fullLog) Read(_ context.Context, r message.Range) (message.Page, error) {
	p := message.Page{Epoch: "e1", Head: 100, First: 1}
	if r.Limit == 0 {
		return p, nil
	}
	for size := 0; len(p.Messages) < r.Limit; size += len(l.data) {
		seq := r.After + message.Seq(len(p.Messages)) + 1
		if p.More = seq <= p.Head; !p.More || len(p.Messages) > 0 && size+len(l.data) > r.MaxBytes {
			break
		}
		p.Messages = append(p.Messages, message.Message{
			Draft: message.Draft{Room: r.Room, ID: "m", Data: l.data}, Epoch: "e1", Seq: seq,
		})
	}
	return p, nil
}

// 300 clients resume 300 rooms and do not read. Their pages share a budget, and
// are small once it is used up.
func TestStormResumesOfManyRoomsShareABudget(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 300
		h := c.sim.nodes[0]
		h.cfg.Log = &fullLog{c.logView(), bytes.Repeat([]byte{'1'}, 4000)}
		c.blocked = make(chan struct{})
		before := memoryInUse()
		for i := range rooms {
			c.addMember(testRoom(i), 0)
		}
		time.Sleep(5 * time.Second)
		const budget, page, minPerRoom = 64 << 20, 256 << 10, 8 << 10 // DESIGN.md, Bounds
		// The bounds are of data; frames are a twentieth larger.
		limit := (budget + documentedReads*page + rooms*minPerRoom) * 11 / 10
		c.expectAtMost("bytes of pages", int(h.memory.pages.Load()), limit)
		c.expectAtMost("bytes altogether", memoryInUse()-before, limit+rooms*(24<<10))
		close(c.blocked)
		c.waitAllAt(100)
	})
}

// While the log is down, a join costs no goroutine; only its room does.
func TestStormOfJoinsWhileTheLogIsDown(t *testing.T) {
	storm(t, func(c *crowd) {
		const members, rooms = 10000, 10
		before := runtime.NumGoroutine()
		c.logView().set(func() { c.logView().down = true })
		for i := range members {
			c.addMember(testRoom(i%rooms), 0)
		}
		time.Sleep(time.Second)
		c.expectAtMost("goroutines", runtime.NumGoroutine()-before, rooms+goroutineSlack)
		c.logView().set(func() { c.logView().down = false })
		c.waitAllAt(0)
	})
}

// One client is behind by more than a page in many rooms, and has one goroutine.
func TestStormOneClientBehindInManyRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		rooms := scaled(200)
		const n = 200 + 1 // a page and one more
		o := &countingOutlet{last: -1, manyRooms: true}
		client := c.sim.nodes[0].NewClient(o, "", "")
		defer client.Close(true)
		for i := range rooms {
			c.join(client, testRoom(i), -1)
		}
		time.Sleep(5 * time.Second)
		before := runtime.NumGoroutine()
		c.setFeed(false)
		for i := range rooms {
			c.sim.log.commit(testRoom(i), n, 1)
		}
		o.flushDelay = 10 * time.Millisecond
		c.setFeed(true)
		peak := 0
		for began := time.Now(); o.messages() < n*rooms && time.Since(began) < 2*time.Minute; {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			peak = max(peak, runtime.NumGoroutine()-before)
		}
		c.expectAtMost("goroutines", peak, documentedReadsOfKind+1+goroutineSlack)
		if got := o.messages(); got != n*rooms {
			t.Errorf("%d messages, want %d", got, n*rooms)
		}
	})
}
