package drain

import (
	"encoding/json"
	"flag"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

var longStorms = flag.Bool("storm.long", false, "begin as many drains as make storms does")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A testNode is a Node whose clients are fakes. Its time is that of a bubble.
type testNode struct {
	*Node
	*fakeClients
	t       *testing.T
	reg     *prometheus.Registry
	logs    *testkit.Logs
	targets atomic.Pointer[MoveTargets] // what the node learns of others
}

// inBubble runs f in a bubble of testing/synctest with a node that moves its clients
// to a node without trouble.
func inBubble(t *testing.T, change func(*Config), f func(t *testing.T, n *testNode)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, change)
		defer func() {
			if err := n.CloseClients(t.Context()); err != nil {
				t.Error(err)
			}
			synctest.Wait() // a drain that runs has ended
		}()
		f(t, n)
	})
}

// startNode returns a node that moves its clients to a node without trouble.
func startNode(t *testing.T, change func(*Config)) *testNode {
	n := &testNode{t: t, fakeClients: &fakeClients{all: map[*fakeClient]struct{}{}}, reg: prometheus.NewRegistry(), logs: new(testkit.Logs)}
	n.targets.Store(&healthyTargets)
	cfg := Config{
		Node: "n1", Deployment: "d1", Window: 3 * time.Second, Timeout: 20 * time.Second, CloseTimeout: 5 * time.Second,
		HandshakeRate: 500, MoveTargets: func(Scope) MoveTargets { return *n.targets.Load() },
		Clients: n.fakeClients, Log: slog.New(slog.NewJSONHandler(n.logs, nil)), Registerer: n.reg,
	}
	if change != nil {
		change(&cfg)
	}
	n.Node = New(cfg)
	n.node = n.Node
	return n
}

func (n *testNode) awaitPhase(phase string) {
	n.t.Helper()
	testkit.Eventually(n.t, "the phase "+phase, func() bool { return n.State().Phase == phase })
}

// metric returns the value of a metric, with the value of its label, "" for none.
func (n *testNode) metric(name, label string) float64 {
	n.t.Helper()
	return metrictest.Sum(n.t, n.reg, name, label)
}

// fakeClients are the clients of a node, as a server keeps them: counted and found
// under one lock, which is held while the node is asked whether it takes clients.
type fakeClients struct {
	node *Node
	// save replaces SaveBeforeMove. Nil: all sessions are saved.
	save func(wave []Client) (saved, unsaved []Client)

	mu    sync.Mutex
	all   map[*fakeClient]struct{}
	empty chan struct{}
}

// connect adds a client, or returns nil if the node takes none.
func (f *fakeClients) connect(behavior behavior) *fakeClient {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.node.TakesClients() {
		return nil
	}
	c := &fakeClient{clients: f, behavior: behavior, ended: make(chan struct{})}
	f.all[c] = struct{}{}
	return c
}

// connectMany adds n clients.
func (f *fakeClients) connectMany(n int, behavior behavior) []*fakeClient {
	all := make([]*fakeClient, n)
	for i := range all {
		all[i] = f.connect(behavior)
	}
	return all
}

// Each implements Clients.
func (f *fakeClients) Each(visit func(Client)) {
	f.mu.Lock()
	all := slices.Collect(maps.Keys(f.all))
	f.mu.Unlock()
	for _, c := range all {
		visit(c)
	}
}

// Count implements Clients.
func (f *fakeClients) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all)
}

// Emptied implements Clients.
func (f *fakeClients) Emptied() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.empty == nil {
		f.empty = make(chan struct{})
	}
	empty := f.empty
	f.notifyEmpty()
	return empty
}

func (f *fakeClients) notifyEmpty() {
	if len(f.all) == 0 && f.empty != nil {
		close(f.empty)
		f.empty = nil
	}
}

// SaveBeforeMove implements Clients.
func (f *fakeClients) SaveBeforeMove(wave []Client) (saved, unsaved []Client) {
	if f.save == nil {
		return wave, nil
	}
	return f.save(wave)
}

// A behavior is how a client answers.
type behavior int

const (
	follows behavior = iota // moves when it is asked to
	ignores                 // ignores move frames, and answers a close
	silent                  // answers nothing
	lingers                 // answers nothing, and ends lingerTime after it was aborted
	stuck                   // never ends
)

// lingerTime is how long the end of a connection takes that was aborted.
const lingerTime = 300 * time.Millisecond

// A fakeClient is one client.
type fakeClient struct {
	clients  *fakeClients
	behavior behavior
	request  MoveRequest
	ended    chan struct{}

	mu       sync.Mutex
	moves    []moveFrame
	code     protocol.CloseCode // 0: not closed by the node
	closedAt time.Time
	aborted  bool
}

// A moveFrame is a move frame, as a client reads it.
type moveFrame struct {
	at      time.Time
	AfterMS int64 `json:"after_ms"`
	Left    int64 `json:"deadline_ms"`
	Reason  string
	Avoid   struct{ Node, Deployment string }
}

// MoveRequest implements Client.
func (c *fakeClient) MoveRequest() *MoveRequest { return &c.request }

// Send implements Client.
func (c *fakeClient) Send(f protocol.Frame) bool {
	m := moveFrame{at: time.Now()}
	if err := json.Unmarshal(protocol.Payload(f), &m); err != nil {
		panic(err)
	}
	c.mu.Lock()
	c.moves = append(c.moves, m)
	c.mu.Unlock()
	if c.behavior == follows {
		time.AfterFunc(time.Duration(m.AfterMS)*time.Millisecond, func() { c.leave(protocol.CloseNormal, true) })
	}
	return true
}

// CloseWith implements Client.
func (c *fakeClient) CloseWith(code protocol.CloseCode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		return false
	}
	c.code, c.closedAt = code, time.Now()
	if c.behavior < silent {
		time.AfterFunc(time.Millisecond, func() { c.leave(code, false) })
	}
	return true
}

// Abort implements Client.
func (c *fakeClient) Abort() {
	c.mu.Lock()
	c.aborted = true
	code := c.code
	c.mu.Unlock()
	switch c.behavior {
	case lingers:
		time.AfterFunc(lingerTime, func() { c.leave(code, false) })
	case stuck:
	default:
		c.leave(code, false)
	}
}

// leave ends the connection, once.
func (c *fakeClient) leave(code protocol.CloseCode, byClient bool) {
	f := c.clients
	f.mu.Lock()
	_, open := f.all[c]
	f.mu.Unlock()
	if !open {
		return
	}
	if c.request.IsMade() || code == protocol.CloseRestart {
		f.node.RecordEnd(code, byClient)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, open := f.all[c]; open {
		delete(f.all, c)
		close(c.ended)
		f.notifyEmpty()
	}
}

// received returns the move frames so far.
func (c *fakeClient) received() []moveFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.moves)
}

// closedWith waits until the connection has ended, and returns the node's close code.
func (c *fakeClient) closedWith(t *testing.T) protocol.CloseCode {
	t.Helper()
	testkit.Receive(t, "the end of the connection", c.ended)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code
}
