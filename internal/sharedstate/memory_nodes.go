package sharedstate

import (
	"context"
	"maps"
	"strconv"
	"time"
)

// A memoryNode is the last heartbeat of a node.
type memoryNode struct {
	seenAt   time.Time
	status   []byte
	returned int64 // sessions of the node that came back on other nodes
}

// heartbeat does what heartbeat.lua does.
func (m *nodeView) heartbeat(_ context.Context, b heartbeat) (heartbeatReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.nodes[b.node] = memoryNode{seenAt: now, status: b.status, returned: m.nodes[b.node].returned}
	for from, count := range b.returned {
		if node, known := m.nodes[from]; known {
			node.returned += count
			m.nodes[from] = node
		}
	}
	got := heartbeatReply{returned: m.nodes[b.node].returned, bansVersion: strconv.FormatInt(m.bansVersion, 10)}
	for name, node := range m.nodes {
		age := now.Sub(node.seenAt)
		switch {
		case age > forgetAfter:
			delete(m.nodes, name)
		case age <= nodeExpiry && len(got.nodes) < maxNodes:
			got.nodes = append(got.nodes, nodeReport{node: name, status: node.status, age: age})
		}
	}
	return got, nil
}

// ban does what ban.lua does.
func (m *nodeView) ban(_ context.Context, bans []ban) (refused int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.banned, func(_ string, until time.Time) bool { return !until.After(now) })
	for _, b := range bans {
		old, known := m.banned[b.user]
		if !known && len(m.banned) >= maxBans {
			refused++
			continue
		}
		if until := now.Add(b.remaining); until.After(old) {
			m.banned[b.user] = until
		}
	}
	m.bansVersion++
	return refused, nil
}

// bans does what bans.lua does.
func (m *nodeView) bans(context.Context) (version string, bans []ban, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for user, until := range m.banned {
		if left := time.Until(until); left > 0 {
			bans = append(bans, ban{user: user, remaining: left})
		}
	}
	return strconv.FormatInt(m.bansVersion, 10), bans, nil
}
