package hub

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// scenario plays a sequence of events step by step in virtual time: one that
// the property test found, or is unlikely to find again soon. The checker
// checks every frame, and in the end every client must have everything.
func scenario(t *testing.T, nodes int, run func(sim *simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sim := newSimulation(tinyBounds(), nodes, 2, 3)
		sim.t = t
		defer sim.close()
		run(sim)
		sim.waitComplete(t, 8*time.Second)
	})
}

// joinAndWait joins without a position and waits until the client is live.
func (sim *simulation) joinAndWait(c *simClient, node int, room message.Room) {
	sim.dialAndJoin(c, node, room, pendingJoin{fromNow: true})
	time.Sleep(time.Second)
}

func (sim *simulation) dialAndJoin(c *simClient, node int, room message.Room, j pendingJoin) {
	sim.dial(c, node)
	sim.join(c, room, j)
	synctest.Wait()
}

// broadcast commits messages on a node and delivers them everywhere.
func (sim *simulation) broadcast(node int, room message.Room, n int) {
	sim.pending[node] = append(sim.pending[node], sim.log.commit(room, n, 1))
	sim.completeNext(node)
	sim.deliverAll()
	synctest.Wait()
}

func TestJoinAfterZeroMissesNothingOfAnEpochUnknownToTheNode(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.log.commit("r1", 1, 1)
		sim.joinAndWait(sim.clients[0], 0, "r1") // its ring does not have the message
		sim.log.restore(map[message.Room]int{"r1": 1})
		sim.log.commit("r1", 2, 1)
		// Position 0 is the same in every epoch, so no gap may come.
		sim.dialAndJoin(sim.clients[1], 0, "r1", pendingJoin{})
	})
}

// The feed no longer reaches back to a lost message, and the query that compares
// the heads fails at first. The node must repeat the comparison, though no later
// read of the feed mentions the room.
func TestHeadsAreComparedAgainAfterAFailure(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		v := sim.logViews[0]
		v.set(func() { v.headsDown = true })
		sim.log.commit("r1", 1, 1) // on another node, and its broadcast is lost
		sim.log.pruneFeed(0)
		time.Sleep(time.Second)
		v.set(func() { v.headsDown = false })
	})
}

// A node died between commit and broadcast, and the feed is down. The publisher
// sends the message again on another node, which broadcasts it.
func TestAPublishSentAgainIsBroadcastAgain(t *testing.T) {
	scenario(t, 3, func(sim *simulation) {
		for node, c := range sim.clients {
			v := sim.logViews[node]
			v.set(func() { v.feedDown = true })
			sim.joinAndWait(c, node, "r1")
		}
		sim.log.commit("r1", 1, 1) // on node 2, which does not complete it
		sim.nodes[1].Completed(sim.log.resend("r1", 1))
		sim.deliverAll()
		sim.waitComplete(sim.t, time.Second)
	})
}

// Retention deletes messages before a repair reads them. The live members get a
// gap that names these messages, and then the rest.
func TestLiveMembersGetAGapForMessagesThatWereTrimmedUnseen(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		sim.log.commit("r1", 3, 1) // on another node, and its broadcast is lost
		sim.log.trim("r1", 3)
	})
}

// A message of a new epoch arrives while a repair of the old one reads. The
// repair answers only what was recorded before it began.
func TestAnEpochSeenDuringARepairIsReadAfterIt(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		v := sim.logViews[0]
		v.set(func() { v.feedDown, v.delay = true, 100*time.Millisecond })
		sim.log.commit("r1", 1, 1) // lost
		sim.nodes[0].Completed(sim.log.commit("r1", 1, 1))
		time.Sleep(50 * time.Millisecond) // the repair reads, in the old epoch
		sim.log.restore(map[message.Room]int{"r1": 1})
		sim.nodes[0].Completed(sim.log.commit("r1", 1, 1))
		sim.clearFaults()
		v.set(func() { v.feedDown = true })
	})
}

// The first read of the feed begins at its own moment. A room may be live
// before.
func TestARoomThatIsLiveBeforeTheFirstFeedReadIsRepaired(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.stop(0)
		sim.logViews[0].set(func() { sim.logViews[0].feedDown = true })
		sim.start(0)
		sim.joinAndWait(sim.clients[0], 0, "r1")
		sim.log.commit("r1", 1, 1) // on another node, and its broadcast is lost
		sim.clearFaults()
	})
}

func TestJoinedNeverReportsAnOldestMessageBeyondTheNewest(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		sim.log.commit("r1", 2, 1) // the node does not know of these
		sim.log.trim("r1", 3)
		sim.dialAndJoin(sim.clients[1], 0, "r1", pendingJoin{from: modelPosition{"e1", 1}}) // reads the log
		sim.dialAndJoin(sim.clients[2], 0, "r1", pendingJoin{fromNow: true})
	})
}

func TestAClosedTopicReleasesItsMemory(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.logViews[0].set(func() { sim.logViews[0].delay = 2 * time.Second })
		sim.dialAndJoin(sim.clients[0], 0, "r1", pendingJoin{fromNow: true})
		sim.broadcast(0, "r1", 1) // buffered until the topic opens
		sim.leave(sim.clients[0], "r1")
		time.Sleep(30 * time.Second)
		sim.checkIdle()
	})
}

func TestANewEpochSeenWhileATopicOpensIsNotForgotten(t *testing.T) {
	scenario(t, 1, func(sim *simulation) {
		sim.logViews[0].set(func() { sim.logViews[0].delay = 300 * time.Millisecond })
		sim.dialAndJoin(sim.clients[0], 0, "r1", pendingJoin{fromNow: true}) // reads in the old epoch
		sim.log.restore(nil)
		sim.clearFaults()
	})
}

// The seq of a message of a past epoch means nothing in the present one,
// whether the inbox accepts the message or is full, and whether the topic is
// open or not.
func TestALateMessageOfAPastEpochCausesNoLoss(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		late := sim.log.commit("r1", 9, 500) // more than an inbox accepts
		sim.log.restore(map[message.Room]int{"r1": 3})
		time.Sleep(time.Second) // the node learns of the new epoch
		for _, v := range sim.logViews {
			v.set(func() { v.feedDown, v.delay = true, 40*time.Millisecond })
		}
		sim.nodes[1].Completed(late)
		sim.deliverAll() // a repair begins, whose page ends at 3
		time.Sleep(30 * time.Millisecond)
		sim.log.commit("r1", 1, 1) // lost
		sim.broadcast(1, "r1", 1)  // 5 is buffered, and 4 is known to be missing
	})
}

func TestAMessageOfAPastEpochBeforeTheTopicOpensCausesNoLoss(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		late := sim.log.commit("r1", 9, 1)
		sim.log.restore(map[message.Room]int{"r1": 3})
		sim.logViews[0].set(func() { sim.logViews[0].delay, sim.logViews[0].feedDown = 40*time.Millisecond, true })
		sim.dialAndJoin(sim.clients[0], 0, "r1", pendingJoin{fromNow: true})
		sim.nodes[1].Completed(late)
		sim.deliverAll()
		time.Sleep(70 * time.Millisecond) // the topic is open, and a repair reads
		sim.log.commit("r1", 1, 1)
		sim.broadcast(1, "r1", 1)
	})
}

// A room gets more at once than its inbox accepts, and neither the feed nor a
// later message reveals what was dropped.
func TestMessagesDroppedByAFullInboxAreFetched(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		v := sim.logViews[0]
		v.set(func() { v.feedDown = true })
		sim.nodes[1].Completed(sim.log.commit("r1", 9, 500))
		sim.deliverAll()
		sim.waitComplete(sim.t, time.Second)
		if n := testutil.ToFloat64(sim.nodes[0].metrics.dropped.WithLabelValues("inbox_full")); n == 0 {
			t.Error("no message was counted as dropped")
		}
	})
}

// Without a broker a message takes at most the feed's interval and the time
// that a hole has to fill by itself.
func TestWithoutABrokerDeliveryTakesOneFeedInterval(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		worst := time.Duration(0)
		for i := range 50 {
			time.Sleep(time.Duration(i*7) * time.Millisecond)
			sim.nodes[1].Completed(sim.log.commit("r1", 1, 1))
			sim.broker.dropAll()
			began := time.Now()
			for sim.clients[0].missing() != "" {
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			worst = max(worst, time.Since(began))
		}
		if most := 250*time.Millisecond + 20*time.Millisecond + time.Millisecond; worst > most || worst < 100*time.Millisecond {
			t.Errorf("the slowest message took %v, want 100ms to %v", worst, most)
		}
	})
}

// Two broadcasts in the wrong order cost no read. A lost one costs one read,
// however many members there are.
func TestReorderingCostsNoReadAndAHoleCostsOne(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		for _, c := range sim.clients {
			sim.joinAndWait(c, 0, "r1")
		}
		v := sim.logViews[0]
		v.set(func() { v.feedDown = true })
		time.Sleep(time.Second)
		reads := func() int {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.reads
		}
		before := reads()
		first, second := sim.log.commit("r1", 1, 1), sim.log.commit("r1", 1, 1)
		sim.nodes[1].Completed(second)
		sim.deliverAll()
		time.Sleep(10 * time.Millisecond) // less than a hole has to fill
		sim.nodes[1].Completed(first)
		sim.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 0 {
			t.Errorf("reordering cost %d reads, want none", got)
		}
		sim.log.commit("r1", 1, 1)
		sim.nodes[1].Completed(sim.log.commit("r1", 1, 1))
		sim.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 1 {
			t.Errorf("a hole cost %d reads, want one", got)
		}
	})
}

// Delivery is measured until the members got a message, however it came to them: one that
// waited behind a hole is as late as the hole made it, and a duplicate is no delivery.
func TestADeliveryIsMeasuredWhenItHappens(t *testing.T) {
	scenario(t, 2, func(sim *simulation) {
		sim.joinAndWait(sim.clients[0], 0, "r1")
		v := sim.logViews[0]
		v.set(func() { v.feedDown = true })
		time.Sleep(time.Second)
		registry := prometheus.NewRegistry()
		registry.MustRegister(sim.nodes[0].metrics.delivery)
		delivered := func() (count uint64, seconds float64) {
			families, err := registry.Gather()
			if err != nil || len(families) != 1 {
				t.Fatalf("%d metrics: %v", len(families), err)
			}
			h := families[0].GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
		beforeCount, beforeSeconds := delivered()
		expect := func(what string, wantCount uint64, least, most float64) {
			t.Helper()
			synctest.Wait()
			count, seconds := delivered()
			count, seconds = count-beforeCount, seconds-beforeSeconds
			if count != wantCount || seconds < least || seconds > most {
				t.Errorf("%s: %d deliveries took %v s, want %d that took %v to %v s", what, count, seconds, wantCount, least, most)
			}
		}
		first, second := sim.log.commit("r1", 1, 1), sim.log.commit("r1", 1, 1)
		sim.nodes[1].Completed(second)
		sim.deliverAll()
		expect("behind a hole", 0, 0, 0)
		time.Sleep(10 * time.Millisecond)
		sim.nodes[1].Completed(first)
		sim.nodes[1].Completed(first)
		sim.deliverAll()
		expect("the hole was filled", 2, 0.01, 0.011)
		sim.log.commit("r1", 1, 1) // its broadcast is lost
		time.Sleep(time.Second)
		sim.nodes[1].Completed(sim.log.commit("r1", 1, 1))
		sim.deliverAll()
		expect("a hole that stays", 2, 0.01, 0.011)
		time.Sleep(time.Second)
		expect("the hole was repaired", 4, 1.01, 2.5)
	})
}

// receiveUnstored hands a node a message that the log does not have.
func (f *fixture) receiveUnstored(node int, room message.Room, seq message.Seq) {
	p := payload{kind: kindMessages, origin: 1}
	p.add(&message.Publication{Draft: message.Draft{Room: room, ID: "claimed", Data: []byte(`0`)}, Epoch: f.log.epoch, Seq: seq})
	f.nodes[node].Receive(room, p.encode())
}

// Only replacing its files under a running service takes a log back without a
// new epoch. Then what was delivered is invalid, and the members get a gap.
func TestALogThatWentBackInItsEpochVoidsPositions(t *testing.T) {
	f := newFixture(t, 1)
	f.feed.off = true
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	for range 5 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	want := append([]string{"joined 0"}, messages(1, 5)...)
	a.expectFrames(want...)
	f.log.mu.Lock()
	f.log.rooms["r"] = f.log.rooms["r"][:2]
	f.log.mu.Unlock()
	f.receiveUnstored(0, "r", 7)
	want = append(want, "gap 1-2 epoch")
	a.expectFrames(want...)
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames(append(want, "message 3")...)
}

func TestAMessageMissingFromTheLogIsAbandoned(t *testing.T) {
	f := newFixture(t, 1)
	f.feed.off = true
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	f.store("r", 2) // no node knows of these
	f.receiveUnstored(0, "r", 9)
	a.expectFrames("joined 0", "message 1", "message 2") // the log has these
	testkit.Eventually(t, "the topic to give up message 9", func() bool {
		s := f.nodes[0].Rooms()[0]
		return s.Buffered == 0 && s.Behind == 0
	})
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames(append([]string{"joined 0"}, messages(1, 3)...)...)
}

// A logWithHole omits one message from its pages.
type logWithHole struct {
	*memLog
	omitted   atomic.Int64 // the seq, 0: none
	omissions atomic.Int64 // pages without it
}

func (l *logWithHole) Read(ctx context.Context, r message.Range) (message.Page, error) {
	p, err := l.memLog.Read(ctx, r)
	p.Messages = slices.DeleteFunc(p.Messages, func(m message.Message) bool {
		if int64(m.Seq) != l.omitted.Load() {
			return false
		}
		l.omissions.Add(1)
		return true
	})
	return p, err
}

func TestAPageWithAHoleIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			stored  int
			omitted int64
		}{{4, 2}, {4, 4}, {300, 2}} { // in the middle of the last page, at its end, in an earlier page
			f := newFixture(t, 1)
			l := &logWithHole{memLog: f.log}
			l.omitted.Store(tt.omitted)
			f.nodes[0].cfg.Log = l
			a := f.client(0)
			a.must(`{"type":"join","room":"r"}`)
			a.expectFrames("joined 0")
			f.store("r", tt.stored)
			testkit.Eventually(t, "a page with a hole", func() bool { return l.omissions.Load() > 0 })
			a.expectFrames("joined 0")
			l.omitted.Store(0)
			a.expectFrames(append([]string{"joined 0"}, messages(1, tt.stored)...)...)
		}
	})
}
