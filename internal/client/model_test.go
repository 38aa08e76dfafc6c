package client

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
)

// A modelService is a service that keeps its promises, while its connections break
// at random moments and its log is unavailable from time to time. It has one room,
// r.
type modelService struct {
	mu      sync.Mutex
	rng     *rand.Rand
	log     []storedMessage
	members map[*modelPeer]bool
}

type storedMessage struct {
	id   string
	data string
}

// A modelPeer is the service's end of a connection. Frames go through a queue,
// so that the model never waits for a client.
type modelPeer struct {
	conn *websocket.Conn
	out  chan string // closed by serve
}

func (p *modelPeer) writeLoop() {
	for frame := range p.out {
		_ = p.conn.Write(context.Background(), websocket.MessageText, []byte(frame))
	}
}

// oneIn returns true with probability 1/n.
func (m *modelService) oneIn(n int) bool { return m.rng.IntN(n) == 0 }

func (m *modelService) messageFrame(seq int) string {
	return fmt.Sprintf(`{"type":"message","room":"r","epoch":"e","seq":%d,"id":%q,"from":null,"at":"2026-01-02T15:04:05Z","data":%s}`,
		seq, m.log[seq-1].id, m.log[seq-1].data)
}

func (m *modelService) serve(conn *websocket.Conn) {
	p := &modelPeer{conn: conn, out: make(chan string, 10_000)}
	go p.writeLoop()
	p.out <- `{"type":"welcome","user":null,"heartbeat_ms":25000,"max_frame":1000}`
	defer func() {
		_ = conn.CloseNow()
		m.mu.Lock()
		delete(m.members, p)
		m.mu.Unlock()
		close(p.out)
	}()
	for {
		_, b, err := conn.Read(context.Background())
		if err != nil {
			return
		}
		var f clientFrame
		if json.Unmarshal(b, &f) != nil || !m.handle(p, f) {
			return
		}
	}
}

// handle handles a frame. It returns false to break the connection.
func (m *modelService) handle(p *modelPeer, f clientFrame) bool {
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
		p.out <- fmt.Sprintf(`{"type":"joined","ref":%q,"room":"r","epoch":"e","seq":%d,"first":1}`, f.Ref, len(m.log))
		for seq := after + 1; seq <= len(m.log); seq++ {
			p.out <- m.messageFrame(seq)
		}
		m.members[p] = true
		return true
	}
	return m.publish(p, f)
}

func (m *modelService) publish(p *modelPeer, f clientFrame) bool {
	unavailable := fmt.Sprintf(`{"type":"error","ref":%q,"room":"r","code":"unavailable","message":"?","retry_after_ms":500}`, f.Ref)
	if m.oneIn(15) {
		p.out <- unavailable // the message is not stored
		return true
	}
	seq := 1 + slices.IndexFunc(m.log, func(s storedMessage) bool { return s.id == f.ID })
	duplicate := seq > 0
	if !duplicate {
		m.log = append(m.log, storedMessage{f.ID, string(f.Data)})
		seq = len(m.log)
	}
	ackFirst := m.oneIn(2)
	ack := fmt.Sprintf(`{"type":"ack","ref":%q,"room":"r","epoch":"e","seq":%d,"id":%q,"duplicate":%v}`, f.Ref, seq, f.ID, duplicate)
	if ackFirst {
		p.out <- ack
	}
	for member := range m.members {
		if !duplicate {
			member.out <- m.messageFrame(seq)
		}
	}
	switch {
	case m.oneIn(15):
		return false
	case m.oneIn(15) && !ackFirst:
		p.out <- unavailable // although the message is stored
	case !ackFirst:
		p.out <- ack
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
				m := &modelService{rng: rand.New(rand.NewPCG(seed, 1)), members: map[*modelPeer]bool{}}
				go func() {
					for {
						select {
						case p := <-s.peers:
							go m.serve(p.conn)
						case <-s.closed:
							return
						}
					}
				}()
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
			if want := fmt.Sprintf(`"%d-%d"`, i, n); m.log[seq-1].data != want {
				t.Errorf("%s was acked with seq %d, which is %s", want, seq, m.log[seq-1].data)
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
			if msg.Seq != message.Seq(n+1) || string(msg.Data) != m.log[n].data {
				t.Fatalf("subscriber %d: number %d is %d %s", i, n+1, msg.Seq, msg.Data)
			}
		}
	}
}
