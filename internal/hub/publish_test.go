package hub

import (
	"sync"
	"testing"

	"switchyard/internal/message"
)

// A client's publishes under way are bounded: its reader waits for a commit
// before it takes the next, and all are stored in the order sent.
func TestAClientsInflightPublishesAreBounded(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].cfg.MaxInflight = 2
	var mu sync.Mutex
	most, waiting := 0, make(chan *message.Publication, 100)
	complete := f.log.onComplete
	f.log.onComplete = func(p *message.Publication) { // appended, not yet committed
		mu.Lock()
		defer mu.Unlock()
		waiting <- p
		most = max(most, len(waiting))
	}
	a := f.client(0)
	const n = 50
	go func() {
		for range n {
			a.must(`{"type":"publish","room":"r","data":1}`)
		}
	}()
	for range n {
		// Two wait, until the last: the third is not even read.
		complete(<-waiting)
	}
	eventually(t, "all acks", func() bool { return len(a.received("ack")) == n })
	for i, got := range a.received("ack") {
		if want := messages(i+1, i+1)[0][len("message "):]; got != "ack "+want {
			t.Fatalf("ack %d is %q", i+1, got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 2 {
		t.Errorf("%d publishes were under way, 2 may be", most)
	}
}
