package sharedstate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// heartbeatInterval is how often a node tells that it is there.
	heartbeatInterval = time.Second
	// nodeExpiry is how long after that it counts as alive.
	nodeExpiry = 5 * time.Second
	// forgetAfter is when nothing of it is kept any more.
	forgetAfter = time.Minute
	// maxNodes bounds the nodes that one knows of.
	maxNodes = 1000
)

// A heartbeat is what a node tells.
type heartbeat struct {
	node     string
	status   []byte
	returned map[string]int64 // sessions that came here since the last one, by their node before
}

// A heartbeatReply is what is known of all nodes.
type heartbeatReply struct {
	nodes       []nodeReport
	returned    int64  // sessions of this node that came back elsewhere
	bansVersion string // which state the bars are in; another one after each change
}

// An nodeReport is one node's last word.
type nodeReport struct {
	node   string
	status []byte
	age    time.Duration
}

// A wireStatus is what a node says of itself. One that is gone still counts as
// alive until it expires, for the sake of its members: they are on their way.
type wireStatus struct {
	message.NodeStatus
	Gone bool `json:"gone,omitempty"`
}

// nodeRegistry is what a node knows of all, itself included.
type nodeRegistry struct {
	heartbeatMu sync.Mutex // held during a beat. Protects following.
	finalSent   bool       // the last one was sent

	mu          sync.Mutex // Protects following.
	nodes       map[string]nodeRecord
	updatedAt   time.Time        // when the board was read last, zero: never
	pending     map[string]int64 // sessions that came here and are not told yet
	rawReturned int64            // the last count of our own that came back elsewhere
	returned    int64            // the same, whatever was emptied meanwhile
}

type nodeRecord struct {
	seenAt time.Time
	status wireStatus
}

// Nodes returns what each node that is there last told about itself, in the
// order of their names, this one included. It asks nobody: the node reads the
// board each second. An error wraps message.ErrSharedStateUnavailable when it could not lately.
func (n *Node) Nodes() ([]message.NodeStatus, error) {
	f := &n.nodes
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if !f.isCurrent(now) {
		return nil, fmt.Errorf("who is there: %w", message.ErrSharedStateUnavailable)
	}
	var all []message.NodeStatus
	for _, s := range f.nodes {
		age := now.Sub(s.seenAt)
		if s.status.Gone || age > nodeExpiry {
			continue
		}
		status := s.status.NodeStatus
		status.Age = age
		if status.Node == n.cfg.Node {
			status.Returned = f.returned
		}
		all = append(all, status)
	}
	slices.SortFunc(all, func(a, b message.NodeStatus) int { return cmp.Compare(a.Node, b.Node) })
	return all, nil
}

// isCurrent says whether the board was read lately. Caller holds mu.
func (f *nodeRegistry) isCurrent(now time.Time) bool {
	return !f.updatedAt.IsZero() && now.Sub(f.updatedAt) < nodeExpiry
}

// alive returns the nodes whose members count. False: that is not known now.
func (f *nodeRegistry) alive() (map[string]bool, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	all := make(map[string]bool, len(f.nodes))
	for node, s := range f.nodes {
		all[node] = now.Sub(s.seenAt) <= nodeExpiry
	}
	maps.DeleteFunc(all, func(_ string, alive bool) bool { return !alive })
	return all, f.isCurrent(now)
}

// addReturned counts sessions that were another node's before.
func (f *nodeRegistry) addReturned(from string, count int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = make(map[string]int64)
	}
	if _, known := f.pending[from]; known || len(f.pending) < maxNodes {
		f.pending[from] += count
	}
}

// heartbeatLoop tells that the node is there, and reads who else is.
func (n *Node) heartbeatLoop(ctx context.Context) {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	for {
		n.sendHeartbeat(ctx, false)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sendHeartbeat tells and reads once. After one that says gone there is no other.
func (n *Node) sendHeartbeat(ctx context.Context, gone bool) {
	f := &n.nodes
	f.heartbeatMu.Lock()
	defer f.heartbeatMu.Unlock()
	if f.finalSent {
		return
	}
	f.finalSent = gone
	var status wireStatus
	if h := n.hooks.Load(); h.Status != nil {
		status.NodeStatus = h.Status()
	}
	status.Node = n.cfg.Node
	for _, x := range []*float64{&status.HandshakeRate, &status.HandshakesOfMoved, &status.HandshakesRefused, &status.HandshakeLimit} {
		*x = finite(*x)
	}
	if gone {
		status.Ready, status.Gone = false, true
	}
	text, err := json.Marshal(status)
	if err != nil {
		panic(err) // strings and finite numbers
	}
	f.mu.Lock()
	pending := f.pending
	f.pending = nil
	f.mu.Unlock()
	got, err := n.backend.heartbeat(ctx, heartbeat{node: n.cfg.Node, status: text, returned: pending})
	if err != nil {
		// Perhaps they were counted all the same: rather twice than never, or a
		// drain would wait for who has long arrived.
		for from, count := range pending {
			f.addReturned(from, count)
		}
		return
	}
	if f.update(got) {
		// Members of a node count as long as it is alive: in any room somebody
		// may have come or gone.
		n.notify(message.NodeEvent{Kind: message.EventPresenceChanged, Node: n.cfg.Node})
	}
	n.syncBans(ctx, got.bansVersion)
}

// finite is what JSON can write of a number.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

// update takes a board that was just read, and says whether others are alive
// now than before.
func (f *nodeRegistry) update(got heartbeatReply) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	first := f.updatedAt.IsZero()
	f.updatedAt = now
	if f.nodes == nil {
		f.nodes = make(map[string]nodeRecord)
	}
	before := len(f.nodes)
	for _, e := range got.nodes {
		s := nodeRecord{seenAt: now.Add(-e.age)}
		if json.Unmarshal(e.status, &s.status) == nil {
			s.status.Node = e.node
			f.nodes[e.node] = s
		}
	}
	changed = len(f.nodes) != before
	// One that was on an earlier board and is not on this one expires by
	// itself, so that an emptied Redis does not look like the death of all.
	maps.DeleteFunc(f.nodes, func(_ string, s nodeRecord) bool {
		dead := now.Sub(s.seenAt) > nodeExpiry
		changed = changed || dead
		return dead
	})
	if got.returned < f.rawReturned {
		f.rawReturned = 0 // it was emptied
	}
	f.returned += got.returned - f.rawReturned
	f.rawReturned = got.returned
	return changed && !first
}

// markSeen notes a node that is alive, since it tells of itself, and is not on
// the board that was read last.
func (f *nodeRegistry) markSeen(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.nodes[node]; !known && f.nodes != nil && len(f.nodes) < maxNodes {
		f.nodes[node] = nodeRecord{seenAt: time.Now(), status: wireStatus{Gone: true}} // no status to show yet
	}
}
