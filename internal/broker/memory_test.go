package broker

import (
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestASlowNodeLosesItsOldestBroadcasts(t *testing.T) {
	var bus Bus
	reg := prometheus.NewRegistry()
	slow := &node{brokerUnderTest: NewMemory(&bus, Config{Registerer: reg, Queue: 10}), reg: reg}
	defer slow.Close(testkit.Within(t, testkit.Timeout))
	slow.mustSubscribe(t, "busy")
	busy, first := make(chan struct{}), make(chan struct{}, 1)
	var got []string
	done := make(chan struct{})
	slow.Start(func(_ message.Room, payload []byte) {
		select {
		case first <- struct{}{}:
			<-busy
		default:
		}
		if got = append(got, string(payload)); string(payload) == "49" {
			close(done)
		}
	})
	slow.Publish("busy", []byte("first"))
	testkit.Eventually(t, "the first one", func() bool { return len(first) == 1 })
	for i := range 50 {
		slow.Publish("busy", []byte(strconv.Itoa(i)))
	}
	close(busy)
	testkit.Receive(t, "the newest broadcast", done)
	if len(got) != 11 || got[1] != "40" {
		t.Errorf("got %v, want the first and the newest ten", got)
	}
	if n := slow.metric(t, "broker_dropped_total", "full"); n != 40 {
		t.Errorf("%v counted as dropped, want 40", n)
	}
}

func TestBusesAreIsolated(t *testing.T) {
	a, b := newNode(t, NewMemory(nil, Config{}), nil), newNode(t, NewMemory(nil, Config{}), nil)
	a.mustSubscribe(t, "r")
	b.mustSubscribe(t, "r")
	a.Publish("r", []byte("x"))
	a.waitFor(t, "r", "x")
	if got := b.received("r"); len(got) > 0 {
		t.Errorf("a node on another bus got %q", got)
	}
}
