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
	// heartbeatInterval is the time between two heartbeats of a node.
	heartbeatInterval = time.Second
	// nodeExpiry is how long a node counts as alive after its last heartbeat.
	nodeExpiry = 5 * time.Second
	// forgetAfter is when a backend deletes a node's status after its last
	// heartbeat.
	forgetAfter = time.Minute
	// maxNodes bounds the nodes that a node knows.
	maxNodes = 1000
)

// A heartbeat is what a node reports to the backend.
type heartbeat struct {
	node     string
	status   []byte           // an encoded wireStatus
	returned map[string]int64 // sessions resumed here since the last heartbeat, by the node that had them
}

// A heartbeatReply is the backend's answer: the state of all nodes.
type heartbeatReply struct {
	nodes       []nodeReport
	returned    int64  // sessions of this node that came back on other nodes
	bansVersion string // another one after each change of the bans
}

// A nodeReport is the last heartbeat of one node.
type nodeReport struct {
	node   string
	status []byte // an encoded wireStatus
	age    time.Duration
}

// A wireStatus is the encoded status of a node. A node that is gone has closed
// itself: it has no status to show, but counts as alive until it expires, so
// that its sessions stay in their rooms while their clients reconnect.
type wireStatus struct {
	message.NodeStatus
	Gone bool `json:"gone,omitempty"`
}

// A nodeRegistry holds what a node knows of all nodes, itself included.
type nodeRegistry struct {
	heartbeatMu sync.Mutex // held during a heartbeat, so that they follow each other. Protects following.
	finalSent   bool       // the last heartbeat was sent, which reports the node as gone

	mu          sync.Mutex // Protects following.
	nodes       map[string]nodeRecord
	updatedAt   time.Time        // of the last reply; zero before the first
	pending     map[string]int64 // returned sessions that no heartbeat has reported yet, by their node
	rawReturned int64            // the returned count of the last reply
	returned    int64            // the sum of its increases, so that an emptied Redis does not reset it
}

// A nodeRecord is a node's last known heartbeat.
type nodeRecord struct {
	seenAt time.Time // by this node's clock
	status wireStatus
}

// Nodes returns the last status of each running node, this one included, sorted
// by name. It answers from memory; each heartbeat reads the statuses. Its error
// wraps message.ErrSharedStateUnavailable if the last heartbeats failed.
func (n *Node) Nodes() ([]message.NodeStatus, error) {
	r := &n.nodes
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !r.isCurrent(now) {
		return nil, fmt.Errorf("read the statuses of nodes: %w", message.ErrSharedStateUnavailable)
	}
	var all []message.NodeStatus
	for _, record := range r.nodes {
		age := now.Sub(record.seenAt)
		if record.status.Gone || age > nodeExpiry {
			continue
		}
		status := record.status.NodeStatus
		status.Age = age
		if status.Node == n.cfg.Node {
			status.Returned = r.returned
		}
		all = append(all, status)
	}
	slices.SortFunc(all, func(a, b message.NodeStatus) int { return cmp.Compare(a.Node, b.Node) })
	return all, nil
}

// isCurrent reports whether the registry has a reply that is younger than
// nodeExpiry. The caller holds mu.
func (r *nodeRegistry) isCurrent(now time.Time) bool {
	return !r.updatedAt.IsZero() && now.Sub(r.updatedAt) < nodeExpiry
}

// alive returns the nodes whose presence entries count. It returns false if the
// registry is not current.
func (r *nodeRegistry) alive() (map[string]bool, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	all := make(map[string]bool, len(r.nodes))
	for node, record := range r.nodes {
		all[node] = now.Sub(record.seenAt) <= nodeExpiry
	}
	maps.DeleteFunc(all, func(_ string, alive bool) bool { return !alive })
	return all, r.isCurrent(now)
}

// addReturned counts sessions that were resumed here, and that the node from had
// before.
func (r *nodeRegistry) addReturned(from string, count int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		r.pending = make(map[string]int64)
	}
	if _, known := r.pending[from]; known || len(r.pending) < maxNodes {
		r.pending[from] += count
	}
}

// takePending removes and returns the counts for the next heartbeat.
func (r *nodeRegistry) takePending() map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	pending := r.pending
	r.pending = nil
	return pending
}

// heartbeatLoop sends a heartbeat each heartbeatInterval.
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

// sendHeartbeat reports this node's status and reads those of all nodes and the
// bans. With gone, it reports that the node closes; later calls do nothing.
func (n *Node) sendHeartbeat(ctx context.Context, gone bool) {
	r := &n.nodes
	r.heartbeatMu.Lock()
	defer r.heartbeatMu.Unlock()
	if r.finalSent {
		return
	}
	r.finalSent = gone
	status := n.encodeStatus(gone)
	pending := r.takePending()
	got, err := n.backend.heartbeat(ctx, heartbeat{node: n.cfg.Node, status: status, returned: pending})
	if err != nil {
		// The backend may nevertheless have counted them. Counting twice is better
		// than never: a drain would wait for clients that have long reconnected.
		for from, count := range pending {
			r.addReturned(from, count)
		}
		return
	}
	if r.update(got) {
		// The entries of a node count while it is alive, so the presence of any
		// room may have changed.
		n.notify(message.NodeEvent{Kind: message.EventPresenceChanged, Node: n.cfg.Node})
	}
	n.syncBans(ctx, got.bansVersion)
}

// encodeStatus encodes the status that the hook returns.
func (n *Node) encodeStatus(gone bool) []byte {
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
		panic(err) // not possible: strings and finite numbers only
	}
	return text
}

// finite returns 0 for a number that JSON can't encode.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

// update stores the statuses of a reply. It reports whether the set of alive
// nodes has changed; the first reply is not a change.
func (r *nodeRegistry) update(got heartbeatReply) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	first := r.updatedAt.IsZero()
	r.updatedAt = now
	if r.nodes == nil {
		r.nodes = make(map[string]nodeRecord)
	}
	before := len(r.nodes)
	for _, report := range got.nodes {
		record := nodeRecord{seenAt: now.Add(-report.age)}
		if json.Unmarshal(report.status, &record.status) == nil {
			record.status.Node = report.node
			r.nodes[report.node] = record
		}
	}
	changed = len(r.nodes) != before
	// A node that the reply lacks stays until it expires: in an emptied Redis all
	// nodes are missing until their next heartbeats.
	maps.DeleteFunc(r.nodes, func(_ string, record nodeRecord) bool {
		dead := now.Sub(record.seenAt) > nodeExpiry
		changed = changed || dead
		return dead
	})
	if got.returned < r.rawReturned {
		r.rawReturned = 0 // Redis was emptied, and counts from 0 again
	}
	r.returned += got.returned - r.rawReturned
	r.rawReturned = got.returned
	return changed && !first
}

// markSeen adds a node that has sent an event and that no reply has listed yet:
// it started after the last heartbeat. It has no status to show until the next
// one.
func (r *nodeRegistry) markSeen(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.nodes[node]; !known && r.nodes != nil && len(r.nodes) < maxNodes {
		r.nodes[node] = nodeRecord{seenAt: time.Now(), status: wireStatus{Gone: true}}
	}
}
