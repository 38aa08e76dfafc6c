package hub

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

const (
	// readLatency is how long the log takes for one read in a storm.
	readLatency = 5 * time.Millisecond
	// goroutineSlack is by how much the runtime's count of goroutines may be off.
	goroutineSlack = 100
)

// storm plays something that happens to thousands at once, on one node with the
// usual bounds. Time is virtual: what is measured is queries, memory,
// goroutines, and the time that waiting for the log makes.
func storm(t *testing.T, run func(c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{t: t, sim: newSimulation(defaultBounds(), 1, 0, 0)}
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
		time.Sleep(time.Second) // an answer under way comes still
	}
}

func testRoom(i int) message.Room { return message.Room(fmt.Sprintf("r%d", i)) }

// A cost is what something cost.
type cost struct {
	took        time.Duration
	reads       int // of pages and heads of one room
	feedQueries int // of the feed, and for heads by name
	atOnce      int // reads
	goroutines  int // more than before, at the most
}

// waitAllAt waits for all of the crowd to be at a seq, and says what that cost.
func (c *crowd) waitAllAt(seq int) cost {
	c.t.Helper()
	c.readCounters(true)
	before, most := runtime.NumGoroutine(), 0
	began := time.Now()
	synctest.Wait()
	for c.countAt(seq) < len(c.outlets) {
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("%d of %d are at %d", c.countAt(seq), len(c.outlets), seq)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait() // those that a timer starts for a moment are no matter
		most = max(most, runtime.NumGoroutine())
	}
	k := c.readCounters(false)
	k.took, k.goroutines = time.Since(began), most-before
	c.t.Logf("%d at %d after %v: %d reads, %d at once, %d questions to the feed, %d goroutines more",
		len(c.outlets), seq, k.took, k.reads, k.atOnce, k.feedQueries, k.goroutines)
	return k
}

func (c *crowd) readCounters(reset bool) cost {
	l := c.sim.log
	l.mu.Lock()
	defer l.mu.Unlock()
	k := cost{reads: l.reads, feedQueries: l.feedQueries, atOnce: l.readsPeak}
	if reset {
		l.reads, l.feedQueries, l.readsPeak = 0, 0, l.readsNow
	}
	return k
}

// expectAtMost fails when something cost more than it may.
func (c *crowd) expectAtMost(what string, got, most int) {
	c.t.Helper()
	c.t.Logf("%s: %d, may be %d", what, got, most)
	if got > most {
		c.t.Errorf("too many %s", what)
	}
}

// A node that was cut off from the feed for longer than that reaches back
// compares heads by name, in pages, and reads each room once.
func TestStormFiveThousandRoomsAfterALongFeedOutage(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5000
		for i := range rooms {
			c.addMember(testRoom(i), -1)
		}
		k := c.waitAllAt(0)
		c.expectAtMost("reads to open", k.reads, rooms)
		before := memoryInUse()
		c.setFeed(false)
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 3, 100)
		}
		c.sim.log.pruneFeed(0) // the feed does not know them any more
		c.setFeed(true)
		k = c.waitAllAt(3)
		c.expectAtMost("reads", k.reads, rooms)
		c.expectAtMost("reads at once", k.atOnce, maxReadsPerKind)
		c.expectAtMost("questions to the feed", k.feedQueries, rooms/headsPage+int(k.took/(250*time.Millisecond))+2)
		c.expectAtMost("goroutines", k.goroutines, maxReadsPerKind+goroutineSlack)
		c.expectAtMost("ms", int(k.took.Milliseconds()), rooms*5/maxReadsPerKind+500)
		c.expectAtMost("bytes a room", (memoryInUse()-before)/rooms, 4<<10) // the ring, mostly
	})
}

// Five thousand rooms miss a message at one moment: one read each, few at once,
// and who joins meanwhile does not wait behind them.
func TestStormFiveThousandRoomsRepairAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5000
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
		time.Sleep(100 * time.Millisecond) // the storm is at its height
		late.addMember("late", 0)
		k := late.waitAllAt(1)
		c.expectAtMost("ms until a join is answered", int(k.took.Milliseconds()), 100)
		k = c.waitAllAt(2)
		c.expectAtMost("reads", k.reads, rooms)
		c.expectAtMost("reads at once", k.atOnce, maxReads)
		c.expectAtMost("ms", int(k.took.Milliseconds()), rooms*5/maxReadsPerKind+100)
	})
}

// Thousands of rooms open at once, or thousands of members resume: a hole is
// filled meanwhile, a room opened and a page read as if nothing were.
func TestStormNoReadWaitsBehindThoseOfAnotherKind(t *testing.T) {
	for _, kind := range []string{"opens", "pages", "repairs"} {
		t.Run(kind, func(t *testing.T) {
			storm(t, func(c *crowd) {
				const rooms = 3000
				l, h := c.sim.log, c.sim.nodes[0]
				l.commit("far", 1, 1) // before it is live: in no ring
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
				time.Sleep(100 * time.Millisecond) // the storm is at its height
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
					t.Error("the hole is not filled")
				}
				for i, o := range late.outlets {
					if _, joined := o.progress(); joined == 0 {
						t.Errorf("late comer %d has no answer", i)
					}
				}
			})
		})
	}
}

// An older state is put back: every room's positions are void. One read each,
// and an operator reads of it once, not five thousand times.
func TestStormANewEpochInFiveThousandRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5000
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
		c.expectAtMost("reads at once", k.atOnce, maxReadsPerKind)
		c.expectAtMost("lines of log", int(c.sim.logLines.n.Load()), 1)
	})
}

// A room with ten thousand members falls behind by more than a page. They read
// at their own pace, and share pages all the same.
func TestStormAHotRoomFallsBehind(t *testing.T) {
	storm(t, func(c *crowd) {
		const members = 10000
		for i := range members {
			c.addMember("r", -1)
			c.outlets[i].flushDelay = time.Duration(i%500) * time.Millisecond
		}
		c.waitAllAt(0)
		before := memoryInUse()
		c.setFeed(false)
		c.sim.log.commit("r", 250, 100)
		c.setFeed(true)
		k := c.waitAllAt(250)
		c.expectAtMost("reads", k.reads, 4) // one that finds it, and two pages, of which one may be read again
		c.expectAtMost("goroutines", k.goroutines, members+goroutineSlack)
		time.Sleep(2 * pageCacheTTL)
		c.expectAtMost("bytes a member in the end", (memoryInUse()-before)/members, 1<<10)
	})
}

// Ten thousand come back from far behind, to one room, and none of them reads:
// what waits for them is the same page.
func TestStormTenThousandResumeAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		const members = 10000
		c.sim.log.commit("r", 250, 1000)
		c.blocked = make(chan struct{})
		before := memoryInUse()
		c.readCounters(true)
		for range members {
			c.addMember("r", 0)
		}
		time.Sleep(5 * time.Second)
		c.expectAtMost("reads", c.readCounters(false).reads, 3) // head, and a page that may be read again
		c.expectAtMost("bytes a member that waits", (memoryInUse()-before)/members, 8<<10)
		close(c.blocked)
		k := c.waitAllAt(250)
		c.expectAtMost("reads", k.reads, 3)
		c.expectAtMost("goroutines", k.goroutines, goroutineSlack) // of the one a member that it had
	})
}

// Four hundred rooms wait for a message that is lost, while the log is slow and
// 100 MB of what follows comes: what is held for its turn has a budget, beyond
// which the log has it.
func TestStormOfEarlyMessages(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms, n = 400, 60
		h := c.sim.nodes[0]
		for i := range rooms {
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(0)
		c.setFeed(false)
		c.logView().set(func() { c.logView().delay = 4 * time.Second })
		most := int64(0)
		for i := range rooms {
			h.Completed(c.sim.log.commit(testRoom(i), n, 4000)[1:])
			c.sim.broker.dropAll()
			synctest.Wait()
			most = max(most, h.memory.undelivered.Load())
		}
		b := h.cfg.bounds
		c.expectAtMost("bytes held", int(most), int(b.undeliveredBudget)+b.reorderBytes+rooms*b.minBytes)
		if most < b.undeliveredBudget {
			t.Errorf("%d bytes were held: no storm", most)
		}
		c.logView().set(func() { c.logView().delay = readLatency })
		k := c.waitAllAt(n)
		c.expectAtMost("reads", k.reads, 2*rooms) // one that finds it missing, one for what was let go
	})
}

// A fullLog has a hundred messages of 4 KB in every room.
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

// A thousand resume a thousand rooms, and do not read: pages have a budget,
// beyond which they are small.
func TestStormResumesOfManyRoomsShareABudget(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 1000
		h := c.sim.nodes[0]
		h.cfg.Log = &fullLog{c.logView(), make([]byte, 4000)}
		for i := range h.cfg.Log.(*fullLog).data {
			h.cfg.Log.(*fullLog).data[i] = '1'
		}
		c.blocked = make(chan struct{})
		before := memoryInUse()
		for i := range rooms {
			c.addMember(testRoom(i), 0)
		}
		time.Sleep(5 * time.Second)
		b := h.cfg.bounds
		// Pages are bounded by their data; frames are a twentieth larger, names and all.
		most := (int(b.pageBudget) + maxReads*b.pageBytes + rooms*b.minBytes) * 11 / 10
		c.expectAtMost("bytes of pages", int(h.memory.pages.Load()), most)
		c.expectAtMost("bytes in all", memoryInUse()-before, most+rooms*(24<<10))
		close(c.blocked)
		c.waitAllAt(100)
	})
}

// Joins that wait for a log that is away cost no goroutine, only their rooms do;
// neither do a thousand rooms in which one client is behind.
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

func TestStormOneClientBehindInAThousandRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 1000
		n := defaultBounds().pageFrames + 1
		o := &countingOutlet{last: -1, manyRooms: true}
		client := c.sim.nodes[0].NewClient(o, "")
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
		most := 0
		for began := time.Now(); o.messages() < n*rooms && time.Since(began) < 2*time.Minute; {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			most = max(most, runtime.NumGoroutine()-before)
		}
		c.expectAtMost("goroutines", most, maxReadsPerKind+1+goroutineSlack)
		if got := o.messages(); got != n*rooms {
			t.Errorf("%d messages, want %d", got, n*rooms)
		}
	})
}
