package hub

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// A client's uncommitted publishes are bounded: its next request waits for a
// commit. All are stored in the order they were sent.
func TestAClientsInflightPublishesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		f.nodes[0].cfg.MaxInflight = 2
		const n = 50
		uncommitted := make(chan *message.Publication, n)
		complete := f.log.onComplete
		f.log.onComplete = func(p *message.Publication) { uncommitted <- p } // appended, not yet committed
		a := f.client(0)
		go func() {
			for range n {
				a.must(`{"type":"publish","room":"r","data":1}`)
			}
		}()
		for i := range n {
			synctest.Wait() // until the third can only wait
			if got, want := len(uncommitted), min(2, n-i); got != want {
				t.Fatalf("%d publishes are uncommitted after %d commits, want %d", got, i, want)
			}
			complete(<-uncommitted)
		}
		testkit.Eventually(t, "all acks", func() bool { return len(a.received("ack")) == n })
		for i, got := range a.received("ack") {
			if want := messages(i+1, i+1)[0][len("message "):]; got != "ack "+want {
				t.Fatalf("ack %d is %q", i+1, got)
			}
		}
	})
}

// A publish that fails is answered with an error. No member receives it, on any
// node, and the next one is delivered as if it had not been.
func TestAFailedPublishIsNotDelivered(t *testing.T) {
	f := newFixture(t, 2)
	a, b := f.client(0), f.client(1)
	for _, c := range []*testClient{a, b} {
		c.must(`{"type":"join","room":"r"}`)
		c.expectFrames("joined 0")
	}
	f.log.setDown(true)
	a.must(`{"type":"publish","room":"r","data":"lost"}`)
	a.expectFrames("joined 0", "error unavailable")
	f.log.setDown(false)
	a.must(`{"type":"publish","room":"r","data":"stored"}`)
	a.expectFrames("joined 0", "error unavailable", "message 1")
	b.expectFrames("joined 0", "message 1")
	b.out.mu.Lock()
	defer b.out.mu.Unlock()
	if got := b.out.frames[1]["data"]; got != "stored" {
		t.Errorf("the message has data %v, want that of the stored publish", got)
	}
	if n := f.broker.published; n != 1 {
		t.Errorf("%d broadcasts, want only that of the stored publish", n)
	}
}

// A failed publish no longer counts as in flight.
func TestAFailedPublishFreesItsSlot(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].cfg.MaxInflight = 1
	a := f.client(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.log.setDown(true)
		a.must(`{"type":"publish","room":"r","data":1}`)
		f.log.setDown(false)
		a.must(`{"type":"publish","room":"r","data":1}`)
	}()
	testkit.Receive(t, "the second publish to return, although the first has failed", done)
	testkit.Eventually(t, "an error and an ack", func() bool {
		return len(a.received("error")) == 1 && len(a.received("ack")) == 1
	})
}

// A signal that was on its way between nodes for ten seconds more than others is
// dropped and counted, whatever the clocks of the two nodes show, and when one of them
// is set. A message is delivered, however late it arrives.
func TestAStaleSignalIsDropped(t *testing.T) {
	const maxAge = 10 * time.Second // docs/limits.md
	for _, ahead := range []time.Duration{0, -12 * time.Second, 12 * time.Second, -time.Hour, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, func(c *Config) { c.FeedInterval = time.Hour })
			var sent [][]byte
			f.broker.setDrop(func(b []byte) bool { sent = append(sent, bytes.Clone(b)); return true })
			b := f.client(1)
			b.must(`{"type":"join","room":"r"}`)
			b.expectFrames("joined 0")
			h := f.nodes[1]
			dropped := func() float64 { return testutil.ToFloat64(h.metrics.dropped.WithLabelValues("stale_signal")) }
			send := func(data string) []byte {
				sent = nil
				f.nodes[0].Signal("r", "", []byte(data))
				p, err := decodePayload(sent[0])
				if err != nil {
					t.Fatal(err)
				}
				p.sentAt += ahead.Microseconds() // as a node does whose clock is ahead
				return p.encode()
			}

			h.Receive("r", send(`"first"`))
			b.expectFrames("joined 0", "signal first")
			late := send(`"late"`)
			time.Sleep(maxAge)
			h.Receive("r", late)
			b.expectFrames("joined 0", "signal first", "signal late")
			time.Sleep(time.Millisecond)
			h.Receive("r", late)
			if n := dropped(); n != 1 {
				t.Errorf("%v ahead: %v signals were counted as stale, want 1", ahead, n)
			}
			h.Receive("r", send(`"new"`))
			b.expectFrames("joined 0", "signal first", "signal late", "signal new")

			sent = nil
			f.client(0).must(`{"type":"publish","room":"r","data":1}`)
			time.Sleep(2 * maxAge)
			h.Receive("r", sent[0])
			b.expectFrames("joined 0", "signal first", "signal late", "signal new", "message 1")
		})
	}
}

// A payload that no hub has encoded is counted, and harms nothing.
func TestAMalformedPayloadIsCounted(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	h := f.nodes[0]
	p := payload{kind: kindMessages, origin: 1, epoch: "e1", frames: []roomFrame{{seq: 1, frame: protocol.Signal("r", "", []byte("1"))}}}
	good := p.encode()
	nextVersion := bytes.Clone(good)
	nextVersion[0]++
	for name, b := range map[string][]byte{"empty": nil, "truncated": good[:len(good)-1], "of the next version": nextVersion} {
		before := testutil.ToFloat64(h.metrics.malformed)
		h.Receive("r", b)
		if n := testutil.ToFloat64(h.metrics.malformed) - before; n != 1 {
			t.Errorf("a payload that is %s was counted %v times", name, n)
		}
	}
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames("joined 0", "message 1")
}
