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

// story plays what the property found, or might not find again soon, step by
// step and in virtual time. The judge reads along; in the end everybody must
// have everything.
func story(t *testing.T, nodes int, tell func(a *arena)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newArena(tiny(), nodes, 2, 3)
		a.t = t
		defer a.close()
		tell(a)
		a.settles(t, 8*time.Second)
	})
}

// enters joins from now and waits until the player is in.
func (a *arena) enters(p *player, node int, room message.Room) {
	a.joins(p, node, room, ask{now: true})
	time.Sleep(time.Second)
}

func (a *arena) joins(p *player, node int, room message.Room, k ask) {
	a.dial(p, node)
	a.join(p, room, k)
	synctest.Wait()
}

// broadcast stores messages by way of a node, and hands them to everyone.
func (a *arena) broadcast(node int, room message.Room, n int) {
	a.pending[node] = append(a.pending[node], a.log.commit(room, n, 1))
	a.settle(node)
	a.deliverAll()
	synctest.Wait()
}

func TestAfterZeroMissesNothingOfAnEpochThatTheNodeHasNotHeardOf(t *testing.T) {
	story(t, 1, func(a *arena) {
		a.log.commit("r1", 1, 1)
		a.enters(a.players[0], 0, "r1") // its ring does not have the message
		a.log.restore(map[message.Room]int{"r1": 1})
		a.log.commit("r1", 2, 1)
		// Before the first message is the same place in every epoch: no gap.
		a.joins(a.players[1], 0, "r1", ask{})
	})
}

// The feed's first answer begins when it is given; a room may be live before.
func TestARoomThatIsLiveBeforeTheFeedIsCompared(t *testing.T) {
	story(t, 1, func(a *arena) {
		a.stop(0)
		a.views[0].set(func() { a.views[0].feedDown = true })
		a.start(0)
		a.enters(a.players[0], 0, "r1")
		a.log.commit("r1", 1, 1) // another node's, and its broadcast is lost
		a.well()
	})
}

func TestJoinedNeverTellsAnOldestMessageBeyondTheNewest(t *testing.T) {
	story(t, 1, func(a *arena) {
		a.enters(a.players[0], 0, "r1")
		a.log.commit("r1", 2, 1) // not heard of yet
		a.log.trim("r1", 3)
		a.joins(a.players[1], 0, "r1", ask{from: position{"e1", 1}}) // reads the log
		a.joins(a.players[2], 0, "r1", ask{now: true})
	})
}

func TestARoomThatIsGoneKeepsNothingOnTheBooks(t *testing.T) {
	story(t, 1, func(a *arena) {
		a.views[0].set(func() { a.views[0].slow = 2 * time.Second })
		a.joins(a.players[0], 0, "r1", ask{now: true})
		a.broadcast(0, "r1", 1) // held until the room opens
		a.leave(a.players[0], "r1")
		time.Sleep(30 * time.Second)
		a.idle()
	})
}

func TestANewEpochToldOfWhileARoomOpensIsNotForgotten(t *testing.T) {
	story(t, 1, func(a *arena) {
		a.views[0].set(func() { a.views[0].slow = 300 * time.Millisecond })
		a.joins(a.players[0], 0, "r1", ask{now: true}) // reads in the old epoch
		a.log.restore(nil)
		a.well()
	})
}

// A message of a past epoch says nothing about the seqs of this one, whether
// the inbox takes it or is full, and whether the room is open or not.
func TestALateMessageOfAPastEpochHidesNothing(t *testing.T) {
	story(t, 2, func(a *arena) {
		a.enters(a.players[0], 0, "r1")
		late := a.log.commit("r1", 9, 500) // more than an inbox takes
		a.log.restore(map[message.Room]int{"r1": 3})
		time.Sleep(time.Second) // the node has heard of it
		for _, v := range a.views {
			v.set(func() { v.feedDown, v.slow = true, 40*time.Millisecond })
		}
		a.nodes[1].Settled(late)
		a.deliverAll() // a repair begins, whose page ends at 3
		time.Sleep(30 * time.Millisecond)
		a.log.commit("r1", 1, 1) // lost
		a.broadcast(1, "r1", 1)  // 5 is held, and 4 is known to be missing
	})
}

func TestAMessageOfAPastEpochBeforeTheRoomIsOpenHidesNothing(t *testing.T) {
	story(t, 2, func(a *arena) {
		late := a.log.commit("r1", 9, 1)
		a.log.restore(map[message.Room]int{"r1": 3})
		a.views[0].set(func() { a.views[0].slow, a.views[0].feedDown = 40*time.Millisecond, true })
		a.joins(a.players[0], 0, "r1", ask{now: true})
		a.nodes[1].Settled(late)
		a.deliverAll()
		time.Sleep(70 * time.Millisecond) // open, and a repair is under way
		a.log.commit("r1", 1, 1)
		a.broadcast(1, "r1", 1)
	})
}

// A room gets more at once than its inbox takes; nothing else tells of it.
func TestWhatAFullInboxDropsIsFetched(t *testing.T) {
	story(t, 2, func(a *arena) {
		a.enters(a.players[0], 0, "r1")
		v := a.views[0]
		v.set(func() { v.feedDown = true })
		a.nodes[1].Settled(a.log.commit("r1", 9, 500))
		a.deliverAll()
		a.settles(a.t, time.Second)
	})
}

// Without a broker a message takes the feed's interval and the moment that a
// hole has to fill by itself, at most.
func TestWithoutABrokerDeliveryTakesTheFeedsTime(t *testing.T) {
	story(t, 2, func(a *arena) {
		a.enters(a.players[0], 0, "r1")
		worst := time.Duration(0)
		for i := range 50 {
			time.Sleep(time.Duration(i*7) * time.Millisecond)
			a.nodes[1].Settled(a.log.commit("r1", 1, 1))
			a.post.lose()
			began := time.Now()
			for a.players[0].lacks() != "" {
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
func TestASwapCostsNoReadAndAHoleCostsOne(t *testing.T) {
	story(t, 2, func(a *arena) {
		for _, p := range a.players {
			a.enters(p, 0, "r1")
		}
		v := a.views[0]
		v.set(func() { v.feedDown = true })
		time.Sleep(time.Second)
		reads := func() int {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.reads
		}
		before := reads()
		first, second := a.log.commit("r1", 1, 1), a.log.commit("r1", 1, 1)
		a.nodes[1].Settled(second)
		a.deliverAll()
		time.Sleep(10 * time.Millisecond) // less than a hole is given
		a.nodes[1].Settled(first)
		a.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 0 {
			t.Errorf("a swap cost %d reads", got)
		}
		a.log.commit("r1", 1, 1)
		a.nodes[1].Settled(a.log.commit("r1", 1, 1))
		a.deliverAll()
		time.Sleep(time.Second)
		if got := reads() - before; got != 1 {
			t.Errorf("a hole cost %d reads", got)
		}
	})
}

// claim hands a node a message that its log does not have.
func (w *world) claim(node int, room message.Room, seq message.Seq) {
	p := payload{kind: kindMessages, origin: 1}
	p.add(&message.Publication{Draft: message.Draft{Room: room, ID: "claimed", Data: []byte(`0`)}, Epoch: w.log.epoch, Seq: seq})
	w.nodes[node].Receive(room, p.encode())
}

// Only a copy of its files under a running service takes a log back without a
// new epoch. Then what was delivered is void, and members are told.
func TestALogThatWentBackInItsEpochVoidsPositions(t *testing.T) {
	w := newWorld(t, 1)
	w.feed.off = true
	a := w.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.sees("joined 0")
	for range 5 {
		a.must(`{"type":"publish","room":"r","data":1}`)
	}
	want := append([]string{"joined 0"}, messages(1, 5)...)
	a.sees(want...)
	w.log.mu.Lock()
	w.log.rooms["r"] = w.log.rooms["r"][:2]
	w.log.mu.Unlock()
	w.claim(0, "r", 7)
	want = append(want, "gap 1-2 epoch")
	a.sees(want...)
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.sees(append(want, "message 3")...)
}

func TestAMessageThatTheLogDoesNotHaveIsGivenUp(t *testing.T) {
	w := newWorld(t, 1)
	w.feed.off = true
	a := w.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.sees("joined 0")
	w.store("r", 2) // not heard of
	w.claim(0, "r", 9)
	a.sees("joined 0", "message 1", "message 2") // what there is comes all the same
	eventually(t, "the topic to be at rest", func() bool {
		s := w.nodes[0].Rooms()[0]
		return s.Held == 0 && s.Behind == 0
	})
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.sees(append([]string{"joined 0"}, messages(1, 3)...)...)
}

// A torn log leaves a message out of its pages, in the middle or at the end,
// while it is told to.
type torn struct {
	*memLog
	without atomic.Int64
	asked   atomic.Int64
}

func (l *torn) Read(ctx context.Context, r message.Range) (message.Page, error) {
	p, err := l.memLog.Read(ctx, r)
	p.Messages = slices.DeleteFunc(p.Messages, func(m message.Message) bool {
		if int64(m.Seq) != l.without.Load() {
			return false
		}
		l.asked.Add(1)
		return true
	})
	return p, err
}

func TestAPageWithAHoleIsNotBelieved(t *testing.T) {
	for _, without := range []int64{2, 4} {
		w := newWorld(t, 1)
		l := &torn{memLog: w.log}
		l.without.Store(without)
		w.nodes[0].cfg.Log = l
		a := w.client(0)
		a.must(`{"type":"join","room":"r"}`)
		a.sees("joined 0")
		w.store("r", 4)
		eventually(t, "a torn page", func() bool { return l.asked.Load() > 0 })
		a.sees("joined 0")
		l.without.Store(0)
		a.sees(append([]string{"joined 0"}, messages(1, 4)...)...)
	}
}
