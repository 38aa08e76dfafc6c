package sharedstate

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// A failingBackend fails chosen calls, and delays and counts the syncs of limits.
type failingBackend struct {
	backend
	noHeartbeats, noBans, noEvents, noLimits atomic.Bool
	limitDelay                               atomic.Int64 // of syncs, a time.Duration
	syncedUsers                              atomic.Int64
}

func (f *failingBackend) heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error) {
	if f.noHeartbeats.Load() {
		return heartbeatReply{}, message.ErrSharedStateUnavailable
	}
	return f.backend.heartbeat(ctx, b)
}

func (f *failingBackend) ban(ctx context.Context, bans []ban) (int, error) {
	if f.noBans.Load() {
		return 0, message.ErrSharedStateUnavailable
	}
	return f.backend.ban(ctx, bans)
}

func (f *failingBackend) send(ctx context.Context, batch []envelope) error {
	if f.noEvents.Load() {
		return message.ErrSharedStateUnavailable
	}
	return f.backend.send(ctx, batch)
}

func (f *failingBackend) consume(ctx context.Context, rates [measureCount]rate, batch []*usage) {
	f.syncedUsers.Add(int64(len(batch)))
	time.Sleep(time.Duration(f.limitDelay.Load()))
	if f.noLimits.Load() {
		for _, u := range batch {
			u.err = message.ErrSharedStateUnavailable
		}
		return
	}
	f.backend.consume(ctx, rates, batch)
}

// startFailingNodes starts memory nodes; the backend of the first one can fail.
func startFailingNodes(t *testing.T, count int, rates Rates) ([]*testNode, *failingBackend) {
	t.Helper()
	var failing *failingBackend
	peers := startMemoryNodesWith(t, count, withRates(rates), func(n *Node) {
		if n.cfg.Node == "node-0" {
			failing = &failingBackend{backend: n.backend}
			n.backend = failing
		}
	})
	return peers, failing
}

// A ban that could not be stored is enforced by its node, and by the others once
// the backend accepts it, even if nothing else has changed there.
func TestABanIsStoredAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 2, Rates{})
		a, b := peers[0], peers[1]
		time.Sleep(3500 * time.Millisecond)
		failing.noBans.Store(true)
		failing.noEvents.Store(true)
		if err := a.Ban(t.Context(), "eve", time.Hour); err == nil || !a.isBanned("eve") {
			t.Fatalf("Ban returned %v; banned here: %v", err, a.isBanned("eve"))
		}
		time.Sleep(3 * time.Second) // the next heartbeats cannot store it either
		if b.isBanned("eve") {
			t.Fatal("the other node knows a ban that was not stored")
		}
		failing.noBans.Store(false)
		time.Sleep(2500 * time.Millisecond)
		if !b.isBanned("eve") {
			t.Error("the other node does not know the ban")
		}
	})
}

// A refused ban does not end a shorter one that the node enforces already.
func TestARefusedBanKeepsTheOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 1, Rates{})
		a := peers[0]
		failing.noHeartbeats.Store(true) // so that the node does not learn the others
		many := make([]ban, 20_000)
		for i := range many {
			many[i] = ban{fmt.Sprintf("u%d", i), time.Hour}
		}
		if refused, err := a.backend.ban(t.Context(), many); refused != 0 || err != nil {
			t.Fatal(refused, err)
		}
		a.bans.add("eve", 10*time.Minute)
		for user, want := range map[string]time.Duration{"eve": 10 * time.Minute, "mallory": 0} {
			if err := a.Ban(t.Context(), user, time.Hour); err == nil {
				t.Errorf("ban 20,001, of %s, was accepted", user)
			}
			if left, _ := a.Banned(user); left != want {
				t.Errorf("%s is banned for %v, want %v", user, left, want)
			}
		}
	})
}

// Sessions that returned while heartbeats failed are counted by a later one.
func TestReturnedSessionsAreCountedAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 2, Rates{})
		a, b := peers[0], peers[1]
		time.Sleep(2500 * time.Millisecond)
		failing.noHeartbeats.Store(true)
		secret, s := b.New("ada")
		b.save(t, s)
		a.resume(t, secret, "ada")
		time.Sleep(2 * time.Second)
		if got := b.statusOf(t, "node-1").Returned; got != 0 {
			t.Errorf("%d sessions are counted before the heartbeat", got)
		}
		failing.noHeartbeats.Store(false)
		time.Sleep(2500 * time.Millisecond)
		if got := b.statusOf(t, "node-1").Returned; got != 1 {
			t.Errorf("%d returned sessions are counted, want 1", got)
		}
	})
}

// Usage during a sync counts, even if the level that the sync returns does not
// include it.
func TestUsageDuringASyncCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 1, Rates{Calls: 0.001, CallBurst: 100})
		a := peers[0]
		failing.limitDelay.Store(int64(100 * time.Millisecond))
		if got := a.publishBurst("ada", 60); got != 60 {
			t.Fatalf("%d of 60 publishes were allowed", got)
		}
		time.Sleep(syncInterval + 50*time.Millisecond) // into the sync
		if got := a.publishBurst("ada", 30); got != 30 {
			t.Fatalf("%d of 30 publishes were allowed", got)
		}
		time.Sleep(60 * time.Millisecond) // until that sync is over, and the next one has not begun
		if got := a.publishBurst("ada", 100); got != 10 {
			t.Errorf("%d more publishes were allowed, want the rest of 100, which is 10", got)
		}
	})
}

// If a sync fails, the node keeps its own estimate.
func TestAFailedSyncKeepsTheEstimate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 1, Rates{Calls: 0.001, CallBurst: 100})
		a := peers[0]
		failing.noLimits.Store(true)
		a.publishBurst("ada", 60)
		time.Sleep(time.Second)
		if got := a.publishBurst("ada", 100); got != 40 {
			t.Errorf("%d more publishes were allowed, want the rest of 100, which is 40", got)
		}
	})
}

// A user who waits for its sync is not evicted, however full its bucket is.
func TestAQueuedUserIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, failing := startFailingNodes(t, 1, Rates{Calls: 1000, CallBurst: 100})
		const users = 2 * maxSyncUsers
		for i := range users {
			peers[0].publishBurst(fmt.Sprintf("u%d", i), 15)
		}
		time.Sleep(10 * time.Second) // all buckets are full again after 15 ms
		if got := failing.syncedUsers.Load(); got != users {
			t.Errorf("%d users were synced, want all %d", got, users)
		}
	})
}

// The backend may lose exactly the last batch of a node. The node notices it by its
// check, without another change.
func TestALostLastBatchIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(2500 * time.Millisecond)
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		time.Sleep(time.Second)
		restore := a.backend.(*nodeView).MemoryBackend.snapshot()
		a.changePresence(message.PresenceJoined, "lobby", "bob")
		time.Sleep(time.Second)
		restore()
		if got := b.usersIn(t, "lobby"); got != "ada" {
			t.Fatalf("right after the loss the room has %q", got)
		}
		time.Sleep(2 * checkInterval)
		if got := b.usersIn(t, "lobby"); got != "ada bob" {
			t.Errorf("after the check the room has %q, want ada and bob", got)
		}
	})
}
