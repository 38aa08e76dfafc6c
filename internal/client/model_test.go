package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit/fakeservice"
)

// A modelService is a service that keeps its promises, while its connections break
// at random moments and its log is unavailable from time to time. It has one room,
// r.
type modelService struct {
	mu      sync.Mutex
	rng     *rand.Rand
	log     []fakeservice.Frame // publishes
	members map[*peer]bool
}

// oneIn returns true with probability 1/n.
func (m *modelService) oneIn(n int) bool { return m.rng.IntN(n) == 0 }

func (m *modelService) messageFrame(seq int) string { return m.log[seq-1].Message("e", seq, "null") }

func (m *modelService) serve(p *peer) {
	p.Queue(`{"type":"welcome","user":null,"heartbeat_ms":25000,"max_frame":1000}`)
	p.Serve(func(f fakeservice.Frame) bool { return m.handle(p, f) })
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.members, p)
}

// handle handles a frame. It returns false to break the connection.
func (m *modelService) handle(p *peer, f fakeservice.Frame) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.oneIn(25) {
		return false
	}
	if f.Type == "join" {
		after := len(m.log)
		if f.After != nil {
			after = int(*f.After)
		}
		p.Queue(f.Joined("e", len(m.log)))
		for seq := after + 1; seq <= len(m.log); seq++ {
			p.Queue(m.messageFrame(seq))
		}
		m.members[p] = true
		return true
	}
	return m.publish(p, f)
}

func (m *modelService) publish(p *peer, f fakeservice.Frame) bool {
	unavailable := f.Error("unavailable", `,"retry_after_ms":500`)
	if m.oneIn(15) {
		p.Queue(unavailable) // the message is not stored
		return true
	}
	seq := 1 + slices.IndexFunc(m.log, func(stored fakeservice.Frame) bool { return stored.ID == f.ID })
	duplicate := seq > 0
	if !duplicate {
		m.log = append(m.log, f)
		seq = len(m.log)
	}
	ackFirst := m.oneIn(2)
	ack := f.Ack("e", seq, duplicate)
	if ackFirst {
		p.Queue(ack)
	}
	for member := range m.members {
		if !duplicate {
			member.Queue(m.messageFrame(seq))
		}
	}
	switch {
	case m.oneIn(15):
		return false
	case m.oneIn(15) && !ackFirst:
		p.Queue(unavailable) // although the message is stored
	case !ackFirst:
		p.Queue(ack)
	}
	return true
}

// publishAll publishes count messages one after the other and returns their seqs.
func publishAll(t *testing.T, c *Client, name string, count int) []message.Seq {
	t.Helper()
	var seqs []message.Seq
	for i := range count {
		ack, err := c.Publish(context.Background(), "r", fmt.Appendf(nil, `"%s-%d"`, name, i), "")
		if err != nil {
			t.Errorf("%s-%d: %v", name, i, err)
			return nil
		}
		seqs = append(seqs, ack.Seq)
	}
	return seqs
}

// Each message with an ack reaches each subscriber once and in order, across dozens
// of broken connections.
func TestNothingIsLostDuplicatedOrReordered(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			withService(t, func(t *testing.T, s *fakeService) {
				m := &modelService{rng: rand.New(rand.NewPCG(seed, 1)), members: map[*peer]bool{}}
				s.serve(m.serve)
				m.run(t, s)
			})
		})
	}
}

func (m *modelService) run(t *testing.T, s *fakeService) {
	t.Helper()
	const publishers, each, subscribers = 3, 40, 3
	var mu sync.Mutex
	got := make([][]message.Message, subscribers)
	for i := range subscribers {
		_, err := s.newClient(Options{}).Join(context.Background(), "r", Start(), Handler{
			Message: func(msg message.Message) {
				mu.Lock()
				defer mu.Unlock()
				got[i] = append(got[i], msg)
			},
			Gap: func(g Gap) { t.Errorf("a gap was reported: %+v", g) },
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	acked := make([][]message.Seq, publishers)
	var all sync.WaitGroup
	for i := range publishers {
		c := s.newClient(Options{})
		all.Go(func() { acked[i] = publishAll(t, c, fmt.Sprint(i), each) })
	}
	all.Wait()
	time.Sleep(5 * time.Minute) // of the bubble: long enough for the last reconnect

	m.mu.Lock()
	defer m.mu.Unlock()
	mu.Lock()
	defer mu.Unlock()
	if len(m.log) != publishers*each {
		t.Errorf("%d messages are stored, want %d", len(m.log), publishers*each)
	}
	for i, seqs := range acked {
		for n, seq := range seqs {
			if want := fmt.Sprintf(`"%d-%d"`, i, n); string(m.log[seq-1].Data) != want {
				t.Errorf("%s was acked with seq %d, which is %s", want, seq, m.log[seq-1].Data)
			}
		}
		if !slices.IsSorted(seqs) {
			t.Errorf("the messages of publisher %d were stored out of order: %v", i, seqs)
		}
	}
	for i := range got {
		if len(got[i]) != len(m.log) {
			t.Errorf("subscriber %d got %d of %d", i, len(got[i]), len(m.log))
		}
		for n, msg := range got[i] {
			if msg.Seq != message.Seq(n+1) || string(msg.Data) != string(m.log[n].Data) {
				t.Fatalf("subscriber %d: number %d is %d %s", i, n+1, msg.Seq, msg.Data)
			}
		}
	}
}
