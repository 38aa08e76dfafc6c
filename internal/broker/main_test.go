package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// TestMain runs more tests at a time than there are cores: most of them only
// wait for failovers and timeouts.
func TestMain(m *testing.M) { testkit.MainParallel(m, 8) }

// brokerUnderTest has the methods that the hub calls.
type brokerUnderTest interface {
	Start(Receive)
	Publish(message.Room, []byte)
	Subscribe(context.Context, message.Room) error
	Unsubscribe(message.Room)
	Up() bool
	Close(context.Context) error
}

// A node is a broker that records what it receives.
type node struct {
	brokerUnderTest
	reg *prometheus.Registry

	mu         sync.Mutex
	got        map[message.Room][]string
	receivedAt map[message.Room][]time.Time // by index as in got
}

func newNode(t *testing.T, b brokerUnderTest, reg *prometheus.Registry) *node {
	t.Helper()
	n := &node{brokerUnderTest: b, reg: reg, got: map[message.Room][]string{}, receivedAt: map[message.Room][]time.Time{}}
	t.Cleanup(func() {
		if err := b.Close(testkit.Within(t, testkit.Timeout)); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	b.Start(func(room message.Room, payload []byte) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.got[room] = append(n.got[room], string(payload))
		n.receivedAt[room] = append(n.receivedAt[room], time.Now())
	})
	return n
}

func (n *node) received(room message.Room) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.got[room]...)
}

// subscribe subscribes again for as long as the broker is down, as the hub does.
func (n *node) subscribe(ctx context.Context, room message.Room) error {
	for {
		err := n.Subscribe(ctx, room)
		if !errors.Is(err, ErrDown) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (n *node) mustSubscribe(t *testing.T, rooms ...message.Room) {
	t.Helper()
	for _, room := range rooms {
		if err := n.subscribe(testkit.Within(t, testkit.Timeout), room); err != nil {
			t.Fatalf("subscribe to %s: %v", room, err)
		}
	}
}

// waitFor waits until the newest payload of the room is last, and returns all.
func (n *node) waitFor(t *testing.T, room message.Room, last string) []string {
	t.Helper()
	var got []string
	testkit.Eventually(t, fmt.Sprintf("%q in %s", last, room), func() bool {
		got = n.received(room)
		return len(got) > 0 && got[len(got)-1] == last
	})
	return got
}

// metric is metrictest.Sum of the node.
func (n *node) metric(t *testing.T, name, reason string) float64 {
	t.Helper()
	return metrictest.Sum(t, n.reg, name, reason)
}
