package client

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/ratelimit"
	"switchyard/internal/testkit/fakeservice"
)

// limitedNodes are modelNodes that refuse what is over the rate of a connection, or of
// all connections of the user together, and what follows a refused publish.
type limitedNodes struct {
	*modelNodes
	each, user    ratelimit.Limit
	reportsLimits bool
	ackAfter      time.Duration

	// Guarded by mu.
	userState ratelimit.State
	states    map[*nodePeer]*ratelimit.State
	refused   map[*nodePeer]map[message.Room]bool
	refusals  int
	began     time.Time
}

func newLimitedNodes(t *testing.T, seed uint64, each, user ratelimit.Limit) *limitedNodes {
	return &limitedNodes{
		modelNodes: &modelNodes{t: t, rng: rand.New(rand.NewPCG(seed, 3)), log: map[message.Room][]fakeservice.Frame{}},
		each:       each, user: user, reportsLimits: true, began: time.Now(),
		states: map[*nodePeer]*ratelimit.State{}, refused: map[*nodePeer]map[message.Room]bool{},
	}
}

func (nodes *limitedNodes) serve(in *peer) {
	nodes.mu.Lock()
	p := &nodePeer{peer: in, node: fmt.Sprint("n", nodes.rng.IntN(3)), client: in.Header.Get("X-Client"), rooms: map[message.Room]bool{}}
	nodes.peers = append(nodes.peers, p)
	nodes.states[p], nodes.refused[p] = new(ratelimit.State), map[message.Room]bool{}
	limits := ""
	if nodes.reportsLimits {
		limits = fmt.Sprintf(`,"limits":{"publish":{"per_second":%d,"burst":%d,"left":%d}}`, nodes.each.PerSecond, nodes.each.Burst, nodes.each.Burst)
	}
	p.Queue(fmt.Sprintf(`{"type":"welcome","session":"s","user":null,"node":%q,"deployment":"d","heartbeat_ms":25000,"max_frame":1000%s}`, p.node, limits))
	nodes.mu.Unlock()
	p.Serve(func(frame fakeservice.Frame) bool {
		nodes.mu.Lock()
		defer nodes.mu.Unlock()
		if frame.Type != "publish" {
			return nodes.handle(p, frame)
		}
		if wait := nodes.take(p, frame); wait > 0 {
			nodes.refusals++
			p.Queue(frame.Error("rate_limited", fmt.Sprintf(`,"retry_after_ms":%d`, max(1, wait.Milliseconds()))))
			return true
		}
		if nodes.ackAfter == 0 {
			return nodes.handle(p, frame)
		}
		nodes.log[frame.Room] = append(nodes.log[frame.Room], frame)
		ack := frame.Ack("e", len(nodes.log[frame.Room]), false)
		time.AfterFunc(nodes.ackAfter, func() { p.Queue(ack) })
		return true
	})
	nodes.mu.Lock()
	defer nodes.mu.Unlock()
	for i, q := range nodes.peers {
		if q == p {
			nodes.peers = append(nodes.peers[:i:i], nodes.peers[i+1:]...)
			break
		}
	}
}

// take counts a publish, or returns how long it must wait. The caller holds mu.
func (nodes *limitedNodes) take(p *nodePeer, frame fakeservice.Frame) time.Duration {
	now := time.Since(nodes.began)
	wait := time.Millisecond
	if !frame.Follows || !nodes.refused[p][frame.Room] {
		if wait = nodes.states[p].Take(nodes.each, now, 1); wait == 0 {
			wait = nodes.userState.Take(nodes.user, now, 1)
		}
	}
	nodes.refused[p][frame.Room] = wait > 0
	return wait
}

// While rates refuse publishes of three connections of one user, and connections move,
// break and close at any moment, the messages of each publisher are stored once and in
// the order of its calls.
func TestTheOrderHoldsOverRefusalsReconnectsAndMoves(t *testing.T) {
	for seed := range uint64(4) {
		for _, reported := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d reported=%v", seed, reported), func(t *testing.T) {
				t.Parallel()
				withService(t, func(t *testing.T, s *fakeService) {
					nodes := newLimitedNodes(t, seed, ratelimit.PerSecond(20), ratelimit.PerSecond(40))
					nodes.reportsLimits = reported
					s.serve(nodes.serve)
					nodes.publishInBursts(t, s)
				})
			})
		}
	}
}

func (nodes *limitedNodes) publishInBursts(t *testing.T, s *fakeService) {
	t.Helper()
	const publishers, bursts, each = 3, 3, 60
	stop := make(chan struct{})
	go nodes.injectFaults(stop)
	var all sync.WaitGroup
	acked := make([][]message.Seq, 2*publishers) // by publisher and room
	for i := range publishers {
		c := s.newClient(Options{HTTPClient: s.limitedHTTPClient(t), Header: http.Header{"X-Client": {fmt.Sprint("p", i)}}})
		all.Go(func() {
			for n := range bursts * each {
				if n%each == 0 {
					time.Sleep(2 * time.Second) // virtual time
				}
				slot := 2*i + n%2
				all.Add(1)
				if err := c.Send(message.Room("rq"[n%2:n%2+1]), fmt.Appendf(nil, `"%d-%d"`, i, n), "", func(ack Ack, err error) {
					defer all.Done()
					if err != nil {
						t.Errorf("%d-%d: %v", i, n, err)
					}
					acked[slot] = append(acked[slot], ack.Seq) // done is called one at a time
				}); err != nil {
					t.Errorf("Send: %v", err)
					all.Done()
				}
			}
		})
	}
	all.Wait()
	close(stop)
	nodes.verify(t, nil, acked, bursts*each/2)
	nodes.mu.Lock()
	defer nodes.mu.Unlock()
	took := time.Since(nodes.began)
	t.Logf("%d moves, %d refusals in %v", nodes.moves, nodes.refusals, took)
	if nodes.refusals == 0 {
		t.Error("no rate has refused anything")
	}
}

// Five thousand publishes at once are stored in the order of the calls, in the time that
// the limit allows. A service that reports its limits refuses none of them, and one that
// does not at most one a second, beside those of the first burst.
func TestFiveThousandPublishesAtOnceTakeTheTimeThatTheLimitAllows(t *testing.T) {
	for reported, publishes := range map[bool]int{true: 5000, false: 2000} {
		t.Run(fmt.Sprintf("reported=%v", reported), func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				limit := ratelimit.Limit{PerSecond: 200, Burst: 400} // the default
				nodes := newLimitedNodes(t, 1, limit, ratelimit.PerSecond(500))
				nodes.reportsLimits, nodes.ackAfter = reported, 20*time.Millisecond
				s.serve(nodes.serve)
				c := s.newClient(Options{MaxPending: publishes})
				var all sync.WaitGroup
				began := time.Now()
				for n := range publishes {
					all.Add(1)
					if err := c.Send("r", fmt.Append(nil, n), "", func(_ Ack, err error) {
						defer all.Done()
						if err != nil {
							t.Errorf("%d: %v", n, err)
						}
					}); err != nil {
						t.Fatal(err)
					}
				}
				all.Wait()
				took, allowed := time.Since(began), time.Duration(publishes-limit.Burst)*time.Second/time.Duration(limit.PerSecond)
				t.Logf("%v, the limit allows %v; %d refusals", took, allowed, nodes.refusals)
				if took > allowed*6/5 || took < allowed*4/5 {
					t.Errorf("it took %v, the limit allows %v", took, allowed)
				}
				if reported && nodes.refusals > 0 {
					t.Errorf("%d were refused", nodes.refusals)
				}
				if nodes.refusals > 1000 {
					t.Errorf("%d were refused: the service closes after 1,000", nodes.refusals)
				}
				for n, stored := range nodes.log["r"] {
					if string(stored.Data) != fmt.Sprint(n) {
						t.Fatalf("%s is stored as number %d", stored.Data, n)
					}
				}
			})
		})
	}
}
