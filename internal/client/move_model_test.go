package client

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
	"switchyard/internal/testkit/fakeservice"
)

// modelNodes are three correct nodes with one log. Their connections are moved, broken
// and closed at any moment. Every connection delays its frames by its own time. A
// random node accepts each connection, as behind a load balancer.
type modelNodes struct {
	t *testing.T
	// mu protects the fields below.
	mu      sync.Mutex
	rng     *rand.Rand
	log     map[message.Room][]fakeservice.Frame
	peers   []*nodePeer
	signals int
	moves   int // moved frames that clients have sent
}

// A nodePeer is a connection to a node.
type nodePeer struct {
	*peer
	node, client string
	rooms        map[message.Room]bool
}

func (nodes *modelNodes) messageFrame(room message.Room, seq int) string {
	return nodes.log[room][seq-1].Message("e", seq, "null")
}

func (nodes *modelNodes) serve(in *peer) {
	nodes.mu.Lock()
	p := &nodePeer{peer: in, node: fmt.Sprint("n", nodes.rng.IntN(3)), client: in.Header.Get("X-Client"), rooms: map[message.Room]bool{}}
	p.Delay = time.Duration(nodes.rng.IntN(15)) * time.Millisecond
	nodes.peers = append(nodes.peers, p)
	p.Queue(fmt.Sprintf(`{"type":"welcome","session":"s","user":null,"node":%q,"deployment":"d","heartbeat_ms":25000,"max_frame":1000}`, p.node))
	nodes.mu.Unlock()
	p.Serve(func(frame fakeservice.Frame) bool {
		nodes.mu.Lock()
		defer nodes.mu.Unlock()
		return nodes.handle(p, frame)
	})
	nodes.mu.Lock()
	defer nodes.mu.Unlock()
	nodes.peers = slices.DeleteFunc(nodes.peers, func(q *nodePeer) bool { return q == p })
}

// handle handles a frame. It returns false, at random, to break the connection
// after that. The caller holds mu.
func (nodes *modelNodes) handle(p *nodePeer, frame fakeservice.Frame) bool {
	switch frame.Type {
	case "moved":
		nodes.moves++
	case "join":
		head := len(nodes.log[frame.Room])
		after := head
		if frame.After != nil {
			after = int(*frame.After)
		}
		p.Queue(frame.Joined("e", head))
		for seq := after + 1; seq <= head; seq++ {
			p.Queue(nodes.messageFrame(frame.Room, seq))
		}
		p.rooms[frame.Room] = true
	case "publish":
		nodes.publish(p, frame)
	}
	return nodes.rng.IntN(400) > 0
}

func (nodes *modelNodes) publish(p *nodePeer, frame fakeservice.Frame) {
	seq := 1 + slices.IndexFunc(nodes.log[frame.Room], func(stored fakeservice.Frame) bool { return stored.ID == frame.ID })
	duplicate := seq > 0
	if !duplicate {
		nodes.log[frame.Room] = append(nodes.log[frame.Room], frame)
		seq = len(nodes.log[frame.Room])
		nodes.deliver(frame.Room, nodes.messageFrame(frame.Room, seq))
	}
	p.Queue(frame.Ack("e", seq, duplicate))
}

func (nodes *modelNodes) deliver(room message.Room, frame string) {
	for _, p := range nodes.peers {
		if p.rooms[room] {
			p.Queue(frame)
		}
	}
}

// injectFaults sends signals, and moves or ends random connections, until stop is
// closed.
func (nodes *modelNodes) injectFaults(stop <-chan struct{}) {
	for {
		nodes.mu.Lock()
		pause := time.Duration(nodes.rng.IntN(500)) * time.Millisecond
		nodes.signals++
		nodes.deliver("r", fmt.Sprintf(`{"type":"signal","room":"r","from":null,"data":%d}`, nodes.signals))
		if len(nodes.peers) > 0 {
			nodes.injectFault(nodes.peers[nodes.rng.IntN(len(nodes.peers))])
		}
		nodes.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-stop:
			return
		}
	}
}

// injectFault moves a connection in most cases, or ends it. The caller holds mu.
func (nodes *modelNodes) injectFault(p *nodePeer) {
	switch nodes.rng.IntN(10) {
	case 0:
		go func() { _ = p.WS.CloseNow() }()
	case 1:
		go func() { _ = p.WS.Close(websocket.StatusCode(codeRestart), "") }()
	case 2: // the client has a newer connection, which replaces this one
		for _, newer := range nodes.peers[slices.Index(nodes.peers, p)+1:] {
			if newer.client == p.client {
				go func() { _ = p.WS.Close(websocket.StatusCode(codeReplaced), "") }()
				return
			}
		}
	default:
		avoid := fmt.Sprintf(`{"node":%q}`, p.node)
		if nodes.rng.IntN(8) == 0 {
			avoid = `{"deployment":"d"}` // that of every node: the move cannot succeed before its deadline
		}
		deadline := nodes.rng.IntN(4000)
		p.Queue(fmt.Sprintf(`{"type":"move","after_ms":%d,"deadline_ms":%d,"avoid":%s,"reason":"random"}`, nodes.rng.IntN(400), deadline, avoid))
		if nodes.rng.IntN(3) == 0 {
			time.AfterFunc(time.Duration(deadline)*time.Millisecond, func() { _ = p.WS.Close(websocket.StatusCode(codeRestart), "") })
		}
	}
}

// limitedHTTPClient returns an HTTP client that fails the test when more than two
// connections are open at a time.
func (s *fakeService) limitedHTTPClient(t *testing.T) *http.Client {
	var mu sync.Mutex
	open := 0
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := s.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		if open++; open > 2 {
			t.Errorf("%d connections at a time", open)
		}
		return &countedConn{Conn: conn, onClose: sync.OnceFunc(func() {
			mu.Lock()
			open--
			mu.Unlock()
		})}, nil
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A countedConn calls onClose when it is closed.
type countedConn struct {
	net.Conn
	onClose func()
}

func (c *countedConn) Close() error {
	defer c.onClose()
	return c.Conn.Close()
}

// While connections move, break and close at any moment, each message is stored
// once and in the order of its publisher, and reaches each subscriber once and in
// order. A signal is delivered at most once, and no client has three connections.
func TestMovesLoseDuplicateAndReorderNothing(t *testing.T) {
	var moves atomic.Int64
	t.Cleanup(func() { // when the parallel seeds are done
		t.Logf("%d moves", moves.Load())
		if n := moves.Load(); n < 200 {
			t.Errorf("the clients moved %d times in all, want 200 or more", n)
		}
	})
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			withService(t, func(t *testing.T, s *fakeService) {
				nodes := &modelNodes{t: t, rng: rand.New(rand.NewPCG(seed, 2)), log: map[message.Room][]fakeservice.Frame{}}
				s.serve(nodes.serve)
				nodes.run(t, s)
				moves.Add(int64(nodes.moves))
			})
		})
	}
}

// A subscriber records the messages and signals of one client.
type subscriber struct {
	runningHandlers atomic.Int32 // handlers that run now
	// mu protects the fields below.
	mu      sync.Mutex
	got     map[message.Room][]message.Message
	signals map[string]bool
}

func (sub *subscriber) handler(t *testing.T) Handler {
	exclusive := func() func() {
		if sub.runningHandlers.Add(1) > 1 {
			t.Error("two handlers run at the same time")
		}
		return func() { sub.runningHandlers.Add(-1) }
	}
	return Handler{
		Joined: func(Joined) { defer exclusive()() },
		Message: func(m message.Message) {
			defer exclusive()()
			sub.mu.Lock()
			defer sub.mu.Unlock()
			sub.got[m.Room] = append(sub.got[m.Room], m)
		},
		Gap: func(g Gap) { t.Errorf("a gap was reported: %+v", g) },
		Signal: func(s Signal) {
			defer exclusive()()
			sub.mu.Lock()
			defer sub.mu.Unlock()
			if sub.signals[string(s.Data)] {
				t.Errorf("signal %s was delivered twice", s.Data)
			}
			sub.signals[string(s.Data)] = true
		},
	}
}

var longStorms = flag.Bool("storm.long", false, "publish as much as make storms does")

func (nodes *modelNodes) run(t *testing.T, s *fakeService) {
	t.Helper()
	const publishers, subscribers = 3, 3
	each := 100
	if *longStorms {
		each = 150
	}
	stop := make(chan struct{})
	go nodes.injectFaults(stop)
	var subs []*subscriber
	for i := range subscribers {
		sub := &subscriber{got: map[message.Room][]message.Message{}, signals: map[string]bool{}}
		subs = append(subs, sub)
		c := s.newClient(Options{HTTPClient: s.limitedHTTPClient(t), Header: http.Header{"X-Client": {fmt.Sprint("s", i)}}})
		for _, room := range []message.Room{"r", "q"} {
			if _, err := c.Join(context.Background(), room, Start(), sub.handler(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var all sync.WaitGroup
	acked := make([][]message.Seq, 2*publishers) // by publisher and room
	for i := range publishers {
		c := s.newClient(Options{HTTPClient: s.limitedHTTPClient(t), Header: http.Header{"X-Client": {fmt.Sprint("p", i)}}})
		all.Add(2 * each)
		go func() {
			for n := range 2 * each {
				slot := 2*i + n%2
				err := c.Send(message.Room("rq"[n%2:n%2+1]), fmt.Appendf(nil, `"%d-%d"`, i, n), "", func(ack Ack, err error) {
					defer all.Done()
					if err != nil {
						t.Errorf("%d-%d: %v", i, n, err)
						return
					}
					acked[slot] = append(acked[slot], ack.Seq) // done is called one at a time
				})
				if err != nil {
					t.Errorf("Send: %v", err)
					all.Done()
				}
				time.Sleep(100 * time.Millisecond) // virtual time
			}
		}()
	}
	all.Wait()
	close(stop)
	time.Sleep(5 * time.Minute) // virtual time: long enough for the last reconnect
	nodes.verify(t, subs, acked, each)
}

func (nodes *modelNodes) verify(t *testing.T, subs []*subscriber, acked [][]message.Seq, each int) {
	t.Helper()
	nodes.mu.Lock()
	defer nodes.mu.Unlock()
	for room, log := range nodes.log {
		if want := each * len(acked) / 2; len(log) != want {
			t.Errorf("%d messages are stored in %s, want %d", len(log), room, want)
		}
		for i, sub := range subs {
			sub.mu.Lock()
			got := sub.got[room]
			sub.mu.Unlock()
			if len(got) != len(log) {
				t.Errorf("subscriber %d got %d of %d in %s", i, len(got), len(log), room)
			}
			for n, m := range got {
				if m.Seq != message.Seq(n+1) || string(m.Data) != string(log[n].Data) {
					t.Fatalf("subscriber %d: message %d of %s has seq %d, data %s", i, n+1, room, m.Seq, m.Data)
				}
			}
		}
	}
	for slot, seqs := range acked {
		// Acks may be out of order, since an own message counts as its ack.
		slices.Sort(seqs)
		for n, seq := range seqs {
			room := message.Room("rq"[slot%2 : slot%2+1])
			if want := fmt.Sprintf(`"%d-%d"`, slot/2, 2*n+slot%2); string(nodes.log[room][seq-1].Data) != want {
				t.Fatalf("seq %d of %s is %s, want %s", seq, room, nodes.log[room][seq-1].Data, want)
			}
		}
	}
}
