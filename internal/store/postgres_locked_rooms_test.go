package store

import (
	"errors"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Another transaction has locked a room's row: that of a node that was stopped
// in the middle of a batch, or of a forgotten psql. Publishers in this room get
// an error, and all others continue.
func TestALockedRoomDoesNotBlockOtherRooms(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	const lockTimeout, lockedRetry = time.Second, 250 * time.Millisecond
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.lockTimeout, c.lockedRetry = 1, lockTimeout, lockedRetry })
	n.mustPublish("locked", "0", "x")
	n.mustPublish("free", "0", "x")
	release := f.lockRoom("locked")

	var publishing sync.WaitGroup
	over := make(chan struct{})
	stopPublishing := sync.OnceFunc(func() { close(over); publishing.Wait() })
	defer stopPublishing()
	pace := time.Tick(5 * time.Millisecond)
	publishing.Go(func() { // there is always a publication in the locked room
		for i := 1; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if p := n.publish("locked", "", numbered("id", i), "x"); !errors.Is(p.Err, message.ErrUnavailable) {
				t.Errorf("in the locked room: %v", p.Err)
			}
			<-pace
		}
	})
	other := f.startNode()
	publishing.Go(func() { // and another node locks the free room for each of its commits
		for i := 1; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if p := other.publish("free", "", numbered("other", i), "x"); p.Err != nil {
				t.Errorf("on another node: %v", p.Err)
			}
			<-pace
		}
	})
	// Until batches have waited for the locked room twice.
	began := time.Now()
	for i := 1; i <= 50 || time.Since(began) < 2*lockTimeout+2*lockedRetry; i++ {
		if p := n.publish("free", "", numbered("id", i), "x"); p.Err != nil {
			t.Fatalf("in a free room, after %v: %v", time.Since(began), p.Err)
		}
		if err := n.AppendBatch(t.Context(), publications(numbered("free ", i)+"-batch x", "other 1 x")); err != nil {
			t.Fatalf("a batch in free rooms: %v", err)
		}
		<-pace
	}
	if err := n.AppendBatch(t.Context(), publications("free b x", "locked b x")); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("a batch with the locked room: %v", err)
	}
	if err := n.Check(); err != nil {
		t.Errorf("the log can be written, but Check returns %v", err)
	}
	stopPublishing()
	release()
	testkit.EventuallyNil(t, "the room can be written again", func() error { return n.publish("locked", "", "after", "x").Err })
	if all := n.readAll("locked"); len(all) != 2 {
		t.Errorf("%d are stored in the locked room, want 2", len(all))
	}
}

func TestPublicationsInABatchWithALockedRoomAreStored(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	first := f.startNode()
	first.mustPublish("locked", "0", "x")
	first.mustPublish("free", "0", "x")
	defer f.lockRoom("locked")()
	n := f.openNode(func(c *Config) { c.AppendWorkers, c.lockTimeout = 1, 300*time.Millisecond })
	// Appended before the start, so that they form one batch.
	free1, locked, free2 := n.append("free", "", "1", "x"), n.append("locked", "", "1", "x"), n.append("free", "", "2", "x")
	n.start()
	if wait(t, locked); !errors.Is(locked.Err, message.ErrUnavailable) {
		t.Errorf("in the locked room: %v", locked.Err)
	}
	for i, p := range []*message.Publication{free1, free2} {
		if wait(t, p); p.Err != nil || p.Seq != message.Seq(i+2) {
			t.Errorf("message %d in the free room: seq %d, %v", i+1, p.Seq, p.Err)
		}
	}
}
