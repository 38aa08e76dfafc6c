// Package e2e tells the service's stories with real processes: servers that
// really die, on a real PostgreSQL and a real Redis.
package e2e

import (
	"fmt"
	"sync"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A history is what publishers were acked and what subscribers got, to be
// judged when the run is over. Safe for concurrent use.
type history struct {
	mu    sync.Mutex
	acked map[message.Room]map[string]message.Seq
	got   map[string][]delivery // by subscriber
	gaps  int
}

type delivery struct {
	room message.Room
	seq  message.Seq
	id   string
}

func newHistory() *history {
	return &history{acked: map[message.Room]map[string]message.Seq{}, got: map[string][]delivery{}}
}

func (h *history) ack(room message.Room, id string, seq message.Seq) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.acked[room] == nil {
		h.acked[room] = map[string]message.Seq{}
	}
	h.acked[room][id] = seq
}

func (h *history) deliver(subscriber string, m message.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got[subscriber] = append(h.got[subscriber], delivery{m.Room, m.Seq, m.ID})
}

func (h *history) gap() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gaps++
}

// received is how many deliveries there were in all.
func (h *history) received() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.got {
		n += len(d)
	}
	return n
}

// judge names every acked message that a subscriber of its room did not get
// exactly once, at its seq, in order. Subscribers were there from the start.
func (h *history) judge(t *testing.T, rooms map[string]message.Room) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gaps > 0 {
		t.Errorf("%d gaps were declared; nothing was trimmed", h.gaps)
	}
	for subscriber, room := range rooms {
		if problem := faults(h.got[subscriber], room, h.acked[room]); problem != "" {
			t.Errorf("%s in %s: %s", subscriber, room, problem)
		}
	}
}

// faults returns the first thing that is wrong with a subscriber's deliveries.
func faults(got []delivery, room message.Room, acked map[string]message.Seq) string {
	seen := map[string]message.Seq{}
	var last message.Seq
	for _, d := range got {
		switch {
		case d.room != room:
			return fmt.Sprintf("got %s of %s", d.id, d.room)
		case d.seq <= last:
			return fmt.Sprintf("got %d after %d: doubled or reordered", d.seq, last)
		case d.seq != last+1:
			return fmt.Sprintf("got %d after %d: a silent gap", d.seq, last)
		case seen[d.id] != 0:
			return fmt.Sprintf("%s came as %d and as %d: stored twice", d.id, seen[d.id], d.seq)
		}
		seen[d.id], last = d.seq, d.seq
	}
	for id, seq := range acked {
		if seen[id] != seq {
			return fmt.Sprintf("acked %s at %d was delivered at %d (0: lost)", id, seq, seen[id])
		}
	}
	return ""
}

// The judge must be able to find each fault.
func TestTheJudgeFindsPlantedFaults(t *testing.T) {
	acked := map[string]message.Seq{"a": 1, "b": 2, "c": 3}
	good := []delivery{{"r", 1, "a"}, {"r", 2, "b"}, {"r", 3, "c"}}
	for name, got := range map[string][]delivery{
		"lost at the end":    good[:2],
		"lost in the middle": {good[0], good[2]},
		"doubled":            {good[0], good[1], good[1], good[2]},
		"reordered":          {good[1], good[0], good[2]},
		"stored twice":       {good[0], good[1], good[2], {"r", 4, "a"}},
		"another seq":        {good[0], {"r", 2, "c"}, {"r", 3, "b"}},
		"another room":       {good[0], {"x", 2, "b"}, good[2]},
		"nothing":            nil,
	} {
		if faults(got, "r", acked) == "" {
			t.Errorf("%s: not found", name)
		}
	}
	if got := faults(good, "r", acked); got != "" {
		t.Errorf("a clean history: %s", got)
	}
}
