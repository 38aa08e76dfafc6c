package store

import (
	"errors"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Somebody's transaction holds a room's row: a node that was stopped amid a
// batch, or an operator's forgotten psql. Who publishes there is told within
// the bound. Nobody else notices but for the one time that it is found out.
func TestALockedRoomDoesNotBlockOtherRooms(t *testing.T) {
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) { c.AppendWorkers, c.AppendTimeout = 1, 4*time.Second })
	n.mustPublish("held", "0", "x")
	n.mustPublish("free", "0", "x")
	release := f.lockRoom("held")

	var publishing sync.WaitGroup
	over := make(chan struct{})
	stopPublishing := sync.OnceFunc(func() { close(over); publishing.Wait() })
	defer stopPublishing()
	publishing.Go(func() { // somebody always wants the held room
		for i := 1; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if p := n.publish("held", "", numbered("id", i), "x"); !errors.Is(p.Err, message.ErrUnavailable) {
				t.Errorf("in the held room: %v", p.Err)
			}
		}
	})
	other := f.startNode()
	publishing.Go(func() { // and another node locks the free room again and again
		for i := 1; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if p := other.publish("free", "", numbered("other", i), "x"); p.Err != nil {
				t.Errorf("on another node: %v", p.Err)
			}
		}
	})
	began := time.Now()
	for i := 1; i <= 50 || time.Since(began) < 6*time.Second; i++ {
		if p := n.publish("free", "", numbered("id", i), "x"); p.Err != nil {
			t.Fatalf("in a free room, after %v: %v", time.Since(began), p.Err)
		}
		if err := n.AppendBatch(t.Context(), publications(numbered("free ", i)+"-batch x", "other 1 x")); err != nil {
			t.Fatalf("a batch in free rooms: %v", err)
		}
	}
	if err := n.AppendBatch(t.Context(), publications("free b x", "held b x")); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("a batch with the held room: %v", err)
	}
	if err := n.Check(); err != nil {
		t.Errorf("the log can be written, and Check says %v", err)
	}
	stopPublishing()
	release()
	eventually(t, "the room takes messages again", func() error { return n.publish("held", "", "after", "x").Err })
	if all := n.readAll("held"); len(all) != 2 {
		t.Errorf("%d are stored in the held room", len(all))
	}
}
