package broker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// The bounds of docs/redis.md.
const (
	documentedDetection  = 4 * time.Second // a frozen Redis, or a cut network, is noticed
	documentedReconnect  = time.Second     // the longest wait between two attempts
	documentedIOTimeout  = 500 * time.Millisecond
	documentedRenewal    = 4 * time.Second  // another server at the address is noticed
	documentedBucketIdle = 10 * time.Second // a bucket without rooms keeps its connection
)

const fakeURL = "redis://10.0.0.1:6379"

func TestASilentRedisIsNoticedAndStaysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.mustSubscribe(t, "r")
		publishUntilReceived(t, n, n, "r", "before")
		f.setFrozen(true)
		time.Sleep(documentedDetection)
		if synctest.Wait(); n.Up() {
			t.Errorf("up after %v of silence", documentedDetection)
		}
		for range 600 { // a minute: it never seems up in between
			time.Sleep(100 * time.Millisecond)
			if n.Up() {
				t.Fatal("up while Redis is frozen")
			}
		}
		f.setFrozen(false)
		time.Sleep(documentedReconnect + 2*documentedIOTimeout)
		if synctest.Wait(); !n.Up() {
			t.Error("still down a moment after Redis has recovered")
		}
		publishUntilReceived(t, n, n, "r", "after")
	})
}

func TestAQuietConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeRedis().open(t, fakeURL, Config{})
		n.waitUp(t)
		time.Sleep(10 * time.Minute)
		if got := n.metric(t, "broker_reconnects_total", ""); got != 0 || !n.Up() {
			t.Errorf("%v reconnects in ten quiet minutes, up %v", got, n.Up())
		}
	})
}

func TestAReconnectComesWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.kill()
		time.Sleep(time.Hour) // the backoff has grown as far as it does
		f.start()
		time.Sleep(documentedReconnect)
		if synctest.Wait(); !n.Up() {
			t.Errorf("still down %v after Redis came back", documentedReconnect)
		}
	})
}

func TestAnOutageIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		var out testkit.Logs
		n := f.open(t, fakeURL, Config{Logger: out.Logger()})
		n.waitUp(t)
		f.kill()
		time.Sleep(time.Hour)
		if lines := out.Count("WARN"); lines != 2 || out.Count("connection refused") != 1 { // the loss, and why it lasts
			t.Errorf("%d warnings:\n%s", lines, out.String())
		}
		f.start()
		n.waitUp(t)
		if got := out.Count("connected to Redis"); got != 2 {
			t.Errorf("%d lines report a connection, want 2:\n%s", got, out.String())
		}
		for range 2 { // two later outages, with one error text
			time.Sleep(time.Minute)
			f.kill()
			f.start()
		}
		time.Sleep(time.Minute)
		if lines := out.Count("WARN"); lines != 4 || !n.Up() {
			t.Errorf("%d warnings after two later outages:\n%s", lines, out.String())
		}
	})
}

// A connection is there while its bucket has rooms, and 10 s longer.
func TestABucketWithoutRoomsHasNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, "redis+cluster://10.0.0.1:7000", Config{})
		running := func() (count int) {
			synctest.Wait()
			for _, b := range n.brokerUnderTest.(*Redis).buckets {
				b.mu.Lock()
				if b.running {
					count++
				}
				b.mu.Unlock()
			}
			return count
		}
		n.waitUp(t)
		n.mustSubscribe(t, "a", roomInSameBucket("a"), "lobby")
		if got := f.subscribed(); got != 2 || running() != 2 {
			t.Errorf("%d subscribed connections, %d buckets run, want 2: two buckets have rooms", got, running())
		}
		time.Sleep(time.Minute)
		n.Unsubscribe("a")
		n.Unsubscribe(roomInSameBucket("a"))
		time.Sleep(documentedBucketIdle - 1500*time.Millisecond)
		if got := running(); got != 2 {
			t.Errorf("%d buckets run before %v have passed", got, documentedBucketIdle)
		}
		time.Sleep(2 * time.Second)
		if got := running(); got != 1 {
			t.Errorf("%d buckets run %v after one became empty", got, documentedBucketIdle)
		}
		n.mustSubscribe(t, "a")
		publishUntilReceived(t, n, n, "a", "again")
		if got := f.subscribed(); got != 2 {
			t.Errorf("%d subscribed connections after a room came back", got)
		}
		if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
			t.Errorf("%v dropped", got)
		}
	})
}

func TestPublishNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.setFrozen(true)
		began := time.Now()
		for range 10_000 {
			n.Publish("r", []byte("x"))
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("10,000 publishes into a frozen Redis took %v", took)
		}
	})
}

func TestCloseIsBoundedWhenRedisIsFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.setFrozen(true)
		for range 100 {
			n.Publish("r", []byte("x"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond+documentedIOTimeout {
			t.Errorf("Close took %v", took)
		}
	})
}

// While one round trip is under way, the broadcasts that are queued form the
// next.
func TestQueuedBroadcastsShareRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.setDelay(20 * time.Millisecond)
		n.Publish("r", []byte("first"))
		synctest.Wait() // it is under way
		for range 1000 {
			n.Publish("r", []byte("x"))
		}
		testkit.Eventually(t, "all to be confirmed", func() bool {
			return f.count("PUBLISH") == 1001 && n.metric(t, "broker_publish_duration_seconds", "") == 2
		})
	})
}

// A broadcast that waited for longer than a signal is true is not sent.
func TestBroadcastsOlderThanTenSecondsAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.kill()
		synctest.Wait()
		for range 5 {
			n.Publish("r", []byte("old"))
		}
		time.Sleep(8 * time.Second)
		for range 7 {
			n.Publish("r", []byte("young"))
		}
		time.Sleep(3 * time.Second)
		f.start()
		n.waitUp(t)
		testkit.Eventually(t, "the young ones to be sent", func() bool { return f.count("PUBLISH") == 7 })
		time.Sleep(time.Minute)
		if sent, stale := f.count("PUBLISH"), n.metric(t, "broker_dropped_total", "stale"); sent != 7 || stale != 5 {
			t.Errorf("%d sent and %v dropped as stale, want 7 and 5", sent, stale)
		}
	})
}

// While Redis does not confirm subscriptions, Subscribe waits for its context.
func TestASubscriptionWaitsForItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		n.waitUp(t)
		f.setFrozen(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.Subscribe(ctx, "r"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Subscribe = %v, want the context's error", err)
		}
		f.setFrozen(false)
		testkit.Eventually(t, "the room to be subscribed nevertheless", func() bool { return f.subscribed() == 1 })
	})
}

// After a reconnect, 5,000 rooms are subscribed with 256 to a command.
func TestRoomsAreSubscribedInChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		n := f.open(t, fakeURL, Config{})
		rooms := manyRooms(5000)
		subscribeAll(t, n, rooms)
		f.kill()
		synctest.Wait()
		before := f.count("SUBSCRIBE")
		f.start()
		n.waitUp(t)
		n.mustSubscribe(t, rooms...)
		if got := f.count("SUBSCRIBE") - before; got != 20 {
			t.Errorf("5,000 rooms took %d commands, want 20", got)
		}
	})
}

// While one of the masters is killed or freezes, and when it comes back, each
// broadcast in a room of another master arrives at once.
func TestALostClusterMasterDelaysNoOtherRoom(t *testing.T) {
	for name, fault := range map[string]struct{ do, undo func(*fakeRedis) }{
		"killed": {(*fakeRedis).kill, (*fakeRedis).start},
		"frozen": {func(f *fakeRedis) { f.setFrozen(true) }, func(f *fakeRedis) { f.setFrozen(false) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				a, b := c.open(t), c.open(t)
				gone := c.roomOn(0, 0)
				others := []message.Room{c.roomOn(1, 0), c.roomOn(2, 0)}
				rooms := append([]message.Room{gone}, others...)
				a.waitUp(t)
				b.mustSubscribe(t, rooms...)
				traffic := startStream(t, a, rooms...)
				time.Sleep(time.Second)
				fault.do(c[0])
				const outage = 2 * documentedDetection
				time.Sleep(outage)
				if synctest.Wait(); a.Up() || b.Up() {
					t.Error("a node is up without one of the masters")
				}
				fault.undo(c[0])
				time.Sleep(documentedReconnect + 2*documentedIOTimeout)
				if synctest.Wait(); !a.Up() || !b.Up() {
					t.Error("a node is down after the master came back")
				}
				traffic.stopAndWait(t, b)
				for _, room := range others {
					got := traffic.stats(t, b, room)
					if want := time.Duration(len(rooms)) * streamEvery; got.lost+got.duplicated+got.reordered > 0 || got.pause != want {
						t.Errorf("%s was affected: %v, want a pause of %v", room, got, want)
					}
				}
				if got := traffic.stats(t, b, gone); got.pause < outage {
					t.Errorf("%s, of the lost master: %v", gone, got)
				}
			})
		})
	}
}
