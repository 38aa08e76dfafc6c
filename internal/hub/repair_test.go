package hub

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// scenario plays what the property found, or might not find again soon, step by
// step and in virtual time. The judge reads along; in the end everybody must
// have everything.
func scenario(t *testing.T, nodes int, run func(a *simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newSimulation(tinyBounds(), nodes, 2, 3)
		a.t = t
		defer a.close()
		run(a)
		a.waitComplete(t, 8*time.Second)
	})
}

// joinAndWait joins from now and waits until the player is in.
func (a *simulation) joinAndWait(p *simClient, node int, room message.Room) {
	a.dialAndJoin(p, node, room, pendingJoin{fromNow: true})
	time.Sleep(time.Second)
}

func (a *simulation) dialAndJoin(p *simClient, node int, room message.Room, k pendingJoin) {
	a.dial(p, node)
	a.join(p, room, k)
	synctest.Wait()
}

// broadcast stores messages by way of a node, and hands them to everyone.
func (a *simulation) broadcast(node int, room message.Room, n int) {
	a.pending[node] = append(a.pending[node], a.log.commit(room, n, 1))
	a.completeNext(node)
	a.deliverAll()
	synctest.Wait()
}

func TestJoinAfterZeroMissesNothingOfAnEpochUnknownToTheNode(t *testing.T) {
	scenario(t, 1, func(a *simulation) {
		a.log.commit("r1", 1, 1)
		a.joinAndWait(a.clients[0], 0, "r1") // its ring does not have the message
		a.log.restore(map[message.Room]int{"r1": 1})
		a.log.commit("r1", 2, 1)
		// Before the first message is the same place in every epoch: no gap.
		a.dialAndJoin(a.clients[1], 0, "r1", pendingJoin{})
	})
}

// The feed's first answer begins when it is given; a room may be live before.
func TestARoomThatIsLiveBeforeTheFirstFeedReadIsRepaired(t *testing.T) {
	scenario(t, 1, func(a *simulation) {
		a.stop(0)
		a.logViews[0].set(func() { a.logViews[0].feedDown = true })
		a.start(0)
		a.joinAndWait(a.clients[0], 0, "r1")
		a.log.commit("r1", 1, 1) // another node's, and its broadcast is lost
		a.clearFaults()
	})
}

func TestJoinedNeverReportsAnOldestMessageBeyondTheNewest(t *testing.T) {
	scenario(t, 1, func(a *simulation) {
		a.joinAndWait(a.clients[0], 0, "r1")
		a.log.commit("r1", 2, 1) // not heard of yet
		a.log.trim("r1", 3)
		a.dialAndJoin(a.clients[1], 0, "r1", pendingJoin{from: modelPosition{"e1", 1}}) // reads the log
		a.dialAndJoin(a.clients[2], 0, "r1", pendingJoin{fromNow: true})
	})
}

func TestAClosedTopicReleasesItsMemory(t *testing.T) {
	scenario(t, 1, func(a *simulation) {
		a.logViews[0].set(func() { a.logViews[0].delay = 2 * time.Second })
		a.dialAndJoin(a.clients[0], 0, "r1", pendingJoin{fromNow: true})
		a.broadcast(0, "r1", 1) // held until the room opens
		a.leave(a.clients[0], "r1")
		time.Sleep(30 * time.Second)
		a.checkIdle()
	})
}

func TestANewEpochSeenWhileATopicOpensIsNotForgotten(t *testing.T) {
	scenario(t, 1, func(a *simulation) {
		a.logViews[0].set(func() { a.logViews[0].delay = 300 * time.Millisecond })
		a.dialAndJoin(a.clients[0], 0, "r1", pendingJoin{fromNow: true}) // reads in the old epoch
		a.log.restore(nil)
		a.clearFaults()
	})
}

// A message of a past epoch says nothing about the seqs of this one, whether
// the inbox takes it or is full, and whether the room is open or not.
func TestALateMessageOfAPastEpochCausesNoLoss(t *testing.T) {
	scenario(t, 2, func(a *simulation) {
		a.joinAndWait(a.clients[0], 0, "r1")
		late := a.log.commit("r1", 9, 500) // more than an inbox takes
		a.log.restore(map[message.Room]int{"r1": 3})
		time.Sleep(time.Second) // the node has heard of it
		for _, v := range a.logViews {
			v.set(func() { v.feedDown, v.delay = true, 40*time.Millisecond })
		}
		a.nodes[1].Completed(late)
		a.deliverAll() // a repair begins, whose page ends at 3
		time.Sleep(30 * time.Millisecond)
		a.log.commit("r1", 1, 1) // lost
		a.broadcast(1, "r1", 1)  // 5 is held, and 4 is known to be missing
	})
}

func TestAMessageOfAPastEpochBeforeTheTopicOpensCausesNoLoss(t *testing.T) {
	scenario(t, 2, func(a *simulation) {
		late := a.log.commit("r1", 9, 1)
		a.log.restore(map[message.Room]int{"r1": 3})
		a.logViews[0].set(func() { a.logViews[0].delay, a.logViews[0].feedDown = 40*time.Millisecond, true })
		a.dialAndJoin(a.clients[0], 0, "r1", pendingJoin{fromNow: true})
		a.nodes[1].Completed(late)
		a.deliverAll()
		time.Sleep(70 * time.Millisecond) // open, and a repair is under way
		a.log.commit("r1", 1, 1)
		a.broadcast(1, "r1", 1)
	})
}

// A room gets more at once than its inbox takes; nothing else tells of it.
func TestMessagesDroppedByAFullInboxAreFetched(t *testing.T) {
	scenario(t, 2, func(a *simulation) {
		a.joinAndWait(a.clients[0], 0, "r1")
		v := a.logViews[0]
		v.set(func() { v.feedDown = true })
		a.nodes[1].Completed(a.log.commit("r1", 9, 500))
		a.deliverAll()
		a.waitComplete(a.t, time.Second)
	})
}

// Without a broker a message takes the feed's interval and the moment that a
// hole has to fill by itself, at most.
func TestWithoutABrokerDeliveryTakesOneFeedInterval(t *testing.T) {
	scenario(t, 2, func(a *simulation) {
		a.joinAndWait(a.clients[0], 0, "r1")
		worst := time.Duration(0)
		for i := range 50 {
			time.Sleep(time.Duration(i*7) * time.Millisecond)
			a.nodes[1].Completed(a.log.commit("r1", 1, 1))
			a.broker.dropAll()
			began := time.Now()
			for a.clients[0].missing() != "" {
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			worst = max(worst, time.Since(began))
		}
		if most := 250*time.Millisecond + 20*time.Millisecond + time.Millisecond; worst > most || worst < 100*time.Millisecond {
			t.Errorf("the slowest took %v, may take %v", worst, most)
		}
	})
}

// Two broadcasts that overtake each other cost no read; one that is lost costs
// one, whatever the number of members.
func TestReorderingCostsNoReadAndAHoleCostsOne(t *testing.T) {
	scenario(t, 2, func(a *simulation) {
		for _, p := range a.clients {
			a.joinAndWait(p, 0, "r1")
		}
		v := a.logViews[0]
		v.set(func() { v.feedDown = true })
		time.Sleep(time.Second)
		reads := func() int {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.reads
		}
		before := reads()
		first, second := a.log.commit("r1", 1, 1), a.log.commit("r1", 1, 1)
		a.nodes[1].Completed(second)
		a.deliverAll()
		time.Sleep(10 * time.Millisecond) // less than a hole is given
		a.nodes[1].Completed(first)
		a.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 0 {
			t.Errorf("a swap cost %d reads", got)
		}
		a.log.commit("r1", 1, 1)
		a.nodes[1].Completed(a.log.commit("r1", 1, 1))
		a.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 1 {
			t.Errorf("a hole cost %d reads", got)
		}
	})
}

// receiveUnstored hands a node a message that its log does not have.
func (w *fixture) receiveUnstored(node int, room message.Room, seq message.Seq) {
	p := payload{kind: kindMessages, origin: 1}
	p.add(&message.Publication{Draft: message.Draft{Room: room, ID: "claimed", Data: []byte(`0`)}, Epoch: w.log.epoch, Seq: seq})
	w.nodes[node].Receive(room, p.encode())
}

// Only a copy of its files under a running service takes a log back without a
// new epoch. Then what was delivered is void, and members are told.
func TestALogThatWentBackInItsEpochVoidsPositions(t *testing.T) {
	w := newFixture(t, 1)
	w.feed.off = true
	a := w.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	for range 5 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	want := append([]string{"joined 0"}, messages(1, 5)...)
	a.expectFrames(want...)
	w.log.mu.Lock()
	w.log.rooms["r"] = w.log.rooms["r"][:2]
	w.log.mu.Unlock()
	w.receiveUnstored(0, "r", 7)
	want = append(want, "gap 1-2 epoch")
	a.expectFrames(want...)
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames(append(want, "message 3")...)
}

func TestAMessageMissingFromTheLogIsAbandoned(t *testing.T) {
	w := newFixture(t, 1)
	w.feed.off = true
	a := w.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	w.store("r", 2) // not heard of
	w.receiveUnstored(0, "r", 9)
	a.expectFrames("joined 0", "message 1", "message 2") // what there is comes all the same
	eventually(t, "the topic to be at rest", func() bool {
		s := w.nodes[0].Rooms()[0]
		return s.Held == 0 && s.Behind == 0
	})
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames(append([]string{"joined 0"}, messages(1, 3)...)...)
}

// A logWithHole log leaves a message out of its pages, in the middle or at the end,
// while it is told to.
type logWithHole struct {
	*memLog
	omitted   atomic.Int64
	omissions atomic.Int64
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
	for _, without := range []int64{2, 4} {
		w := newFixture(t, 1)
		l := &logWithHole{memLog: w.log}
		l.omitted.Store(without)
		w.nodes[0].cfg.Log = l
		a := w.client(0)
		a.must(`{"type":"join","room":"r"}`)
		a.expectFrames("joined 0")
		w.store("r", 4)
		eventually(t, "a torn page", func() bool { return l.omissions.Load() > 0 })
		a.expectFrames("joined 0")
		l.omitted.Store(0)
		a.expectFrames(append([]string{"joined 0"}, messages(1, 4)...)...)
	}
}
