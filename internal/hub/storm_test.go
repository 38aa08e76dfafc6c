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
	// answer is how long the log takes for one read in a storm.
	answer = 5 * time.Millisecond
	// slack is by how much the runtime's count of goroutines may be off.
	slack = 100
)

// storm plays something that happens to thousands at once, on one node with the
// usual bounds. Time is virtual: what is measured is queries, memory,
// goroutines, and the time that waiting for the log makes.
func storm(t *testing.T, tell func(c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{t: t, arena: newArena(usualBounds(), 1, 0, 0)}
		defer c.arena.close()
		defer c.goes()
		c.view().set(func() { c.view().slow = answer })
		tell(c)
	})
}

func (c *crowd) view() *view { return c.arena.views[0] }

// feeds switches the commit feed on or off.
func (c *crowd) feeds(on bool) {
	c.view().set(func() { c.view().feedDown = !on })
	if !on {
		time.Sleep(time.Second) // an answer under way comes still
	}
}

func room(i int) message.Room { return message.Room(fmt.Sprintf("r%d", i)) }

// A toll is what something cost.
type toll struct {
	took       time.Duration
	reads      int // of pages and heads of one room
	asked      int // of the feed, and for heads by name
	atOnce     int // reads
	goroutines int // more than before, at the most
}

// until waits for all of the crowd to be at a seq, and says what that cost.
func (c *crowd) until(seq int) toll {
	c.t.Helper()
	c.counts(true)
	before, most := runtime.NumGoroutine(), 0
	began := time.Now()
	synctest.Wait()
	for c.has(seq) < len(c.tallies) {
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("%d of %d are at %d", c.has(seq), len(c.tallies), seq)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait() // those that a timer starts for a moment are no matter
		most = max(most, runtime.NumGoroutine())
	}
	k := c.counts(false)
	k.took, k.goroutines = time.Since(began), most-before
	c.t.Logf("%d at %d after %v: %d reads, %d at once, %d questions to the feed, %d goroutines more",
		len(c.tallies), seq, k.took, k.reads, k.atOnce, k.asked, k.goroutines)
	return k
}

func (c *crowd) counts(reset bool) toll {
	l := c.arena.log
	l.mu.Lock()
	defer l.mu.Unlock()
	k := toll{reads: l.reads, asked: l.asked, atOnce: l.max}
	if reset {
		l.reads, l.asked, l.max = 0, 0, l.now
	}
	return k
}

// atMost fails when something cost more than it may.
func (c *crowd) atMost(what string, got, most int) {
	c.t.Helper()
	c.t.Logf("%s: %d, may be %d", what, got, most)
	if got > most {
		c.t.Errorf("too many %s", what)
	}
}

// A node that was cut off from the feed for longer than that reaches back
// compares heads by name, in pages, and reads each room once.
func TestStormAColdNodeOfFiveThousandRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5000
		for i := range rooms {
			c.comes(room(i), -1)
		}
		k := c.until(0)
		c.atMost("reads to open", k.reads, rooms)
		before := weight()
		c.feeds(false)
		for i := range rooms {
			c.arena.log.commit(room(i), 3, 100)
		}
		c.arena.log.prune(0) // the feed does not know them any more
		c.feeds(true)
		k = c.until(3)
		c.atMost("reads", k.reads, rooms)
		c.atMost("reads at once", k.atOnce, maxKind)
		c.atMost("questions to the feed", k.asked, rooms/headsPage+int(k.took/(250*time.Millisecond))+2)
		c.atMost("goroutines", k.goroutines, maxKind+slack)
		c.atMost("ms", int(k.took.Milliseconds()), rooms*5/maxKind+500)
		c.atMost("bytes a room", (weight()-before)/rooms, 4<<10) // the ring, mostly
	})
}

// Five thousand rooms miss a message at one moment: one read each, few at once,
// and who joins meanwhile does not wait behind them.
func TestStormFiveThousandRoomsRepairAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5000
		for i := range rooms {
			c.comes(room(i), -1)
		}
		c.until(0)
		c.feeds(false)
		for i := range rooms {
			c.arena.log.commit(room(i), 1, 100) // lost
			c.arena.nodes[0].Settled(c.arena.log.commit(room(i), 1, 100))
		}
		late := &crowd{t: t, arena: c.arena}
		defer late.goes()
		c.arena.log.commit("late", 1, 100)
		time.Sleep(100 * time.Millisecond) // the storm is at its height
		late.comes("late", 0)
		k := late.until(1)
		c.atMost("ms until a join is answered", int(k.took.Milliseconds()), 100)
		k = c.until(2)
		c.atMost("reads", k.reads, rooms)
		c.atMost("reads at once", k.atOnce, maxReads)
		c.atMost("ms", int(k.took.Milliseconds()), rooms*5/maxKind+100)
	})
}

// Thousands of rooms open at once, or thousands of members resume: a hole is
// filled meanwhile, a room opened and a page read as if nothing were.
func TestStormNoReadWaitsBehindThoseOfAnotherKind(t *testing.T) {
	for _, kind := range []string{"opens", "pages", "repairs"} {
		t.Run(kind, func(t *testing.T) {
			storm(t, func(c *crowd) {
				const rooms = 3000
				l, h := c.arena.log, c.arena.nodes[0]
				l.commit("far", 1, 1) // before it is live: in no ring
				live := &crowd{t: t, arena: c.arena}
				defer live.goes()
				live.comes("far", -1)
				live.comes("hole", -1)
				for i := range rooms {
					l.commit(room(i), 1, 1)
					if kind != "opens" {
						live.comes(room(i), -1)
					}
				}
				time.Sleep(3 * time.Second)
				c.feeds(false)
				for i := range rooms {
					switch kind {
					case "repairs":
						l.commit(room(i), 1, 1)
						h.Settled(l.commit(room(i), 1, 1))
					default:
						c.comes(room(i), 0)
					}
				}
				time.Sleep(100 * time.Millisecond) // the storm is at its height
				l.commit("hole", 1, 1)
				h.Settled(l.commit("hole", 1, 1))
				late := &crowd{t: t, arena: c.arena}
				defer late.goes()
				if kind != "opens" {
					late.comes("cold", 0)
				}
				if kind != "pages" {
					late.comes("far", 0)
				}
				time.Sleep(20*time.Millisecond + 10*answer)
				if last, _ := live.tallies[1].at(); kind != "repairs" && last != 2 {
					t.Error("the hole is not filled")
				}
				for i, o := range late.tallies {
					if _, joined := o.at(); joined == 0 {
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
			c.arena.log.commit(room(i), 3, 1)
			c.comes(room(i), -1)
			heads[room(i)] = 2
		}
		c.until(3)
		c.arena.lines.n.Store(0)
		c.arena.log.restore(heads)
		k := c.until(2)
		c.atMost("reads", k.reads, rooms)
		c.atMost("reads at once", k.atOnce, maxKind)
		c.atMost("lines of log", int(c.arena.lines.n.Load()), 1)
	})
}

// A room with ten thousand members falls behind by more than a page. They read
// at their own pace, and share pages all the same.
func TestStormAHotRoomFallsBehind(t *testing.T) {
	storm(t, func(c *crowd) {
		const members = 10000
		for i := range members {
			c.comes("r", -1)
			c.tallies[i].pace = time.Duration(i%500) * time.Millisecond
		}
		c.until(0)
		before := weight()
		c.feeds(false)
		c.arena.log.commit("r", 250, 100)
		c.feeds(true)
		k := c.until(250)
		c.atMost("reads", k.reads, 4) // one that finds it, and two pages, of which one may be read again
		c.atMost("goroutines", k.goroutines, members+slack)
		time.Sleep(2 * pageKeep)
		c.atMost("bytes a member in the end", (weight()-before)/members, 1<<10)
	})
}

// Ten thousand come back from far behind, to one room, and none of them reads:
// what waits for them is the same page.
func TestStormTenThousandResumeAtOnce(t *testing.T) {
	storm(t, func(c *crowd) {
		const members = 10000
		c.arena.log.commit("r", 250, 1000)
		c.stuck = make(chan struct{})
		before := weight()
		c.counts(true)
		for range members {
			c.comes("r", 0)
		}
		time.Sleep(5 * time.Second)
		c.atMost("reads", c.counts(false).reads, 3) // head, and a page that may be read again
		c.atMost("bytes a member that waits", (weight()-before)/members, 8<<10)
		close(c.stuck)
		k := c.until(250)
		c.atMost("reads", k.reads, 3)
		c.atMost("goroutines", k.goroutines, slack) // of the one a member that it had
	})
}

// Four hundred rooms wait for a message that is lost, while the log is slow and
// 100 MB of what follows comes: what is held for its turn has a budget, beyond
// which the log has it.
func TestStormOfMessagesBeforeTheirTurn(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms, n = 400, 60
		h := c.arena.nodes[0]
		for i := range rooms {
			c.comes(room(i), -1)
		}
		c.until(0)
		c.feeds(false)
		c.view().set(func() { c.view().slow = 4 * time.Second })
		most := int64(0)
		for i := range rooms {
			h.Settled(c.arena.log.commit(room(i), n, 4000)[1:])
			c.arena.post.lose()
			synctest.Wait()
			most = max(most, h.books.early.Load())
		}
		b := h.cfg.bounds
		c.atMost("bytes held", int(most), int(b.earlyBudget)+b.holdBytes+rooms*b.least)
		if most < b.earlyBudget {
			t.Errorf("%d bytes were held: no storm", most)
		}
		c.view().set(func() { c.view().slow = answer })
		k := c.until(n)
		c.atMost("reads", k.reads, 2*rooms) // one that finds it missing, one for what was let go
	})
}

// A fullLog has a hundred messages of 4 KB in every room.
type fullLog struct {
	*view
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
func TestStormResumesOfManyRoomsHaveABudget(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 1000
		h := c.arena.nodes[0]
		h.cfg.Log = &fullLog{c.view(), make([]byte, 4000)}
		for i := range h.cfg.Log.(*fullLog).data {
			h.cfg.Log.(*fullLog).data[i] = '1'
		}
		c.stuck = make(chan struct{})
		before := weight()
		for i := range rooms {
			c.comes(room(i), 0)
		}
		time.Sleep(5 * time.Second)
		b := h.cfg.bounds
		// Pages are bounded by their data; frames are a twentieth larger, names and all.
		most := (int(b.pageBudget) + maxReads*b.pageBytes + rooms*b.least) * 11 / 10
		c.atMost("bytes of pages", int(h.books.pages.Load()), most)
		c.atMost("bytes in all", weight()-before, most+rooms*(24<<10))
		close(c.stuck)
		c.until(100)
	})
}

// Joins that wait for a log that is away cost no goroutine, only their rooms do;
// neither do a thousand rooms in which one client is behind.
func TestStormOfJoinsWhileTheLogIsAway(t *testing.T) {
	storm(t, func(c *crowd) {
		const members, rooms = 10000, 10
		before := runtime.NumGoroutine()
		c.view().set(func() { c.view().down = true })
		for i := range members {
			c.comes(room(i%rooms), 0)
		}
		time.Sleep(time.Second)
		c.atMost("goroutines", runtime.NumGoroutine()-before, rooms+slack)
		c.view().set(func() { c.view().down = false })
		c.until(0)
	})
}

func TestStormOneClientBehindInAThousandRooms(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 1000
		n := usualBounds().pageFrames + 1
		o := &tally{last: -1, many: true}
		client := c.arena.nodes[0].NewClient(o, "")
		defer client.Close(true)
		for i := range rooms {
			c.joins(client, room(i), -1)
		}
		time.Sleep(5 * time.Second)
		before := runtime.NumGoroutine()
		c.feeds(false)
		for i := range rooms {
			c.arena.log.commit(room(i), n, 1)
		}
		o.pace = 10 * time.Millisecond
		c.feeds(true)
		most := 0
		for began := time.Now(); o.messages() < n*rooms && time.Since(began) < 2*time.Minute; {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			most = max(most, runtime.NumGoroutine()-before)
		}
		c.atMost("goroutines", most, maxKind+1+slack)
		if got := o.messages(); got != n*rooms {
			t.Errorf("%d messages, want %d", got, n*rooms)
		}
	})
}
