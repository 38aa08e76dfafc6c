package session

import (
	"context"
	"maps"
	"strconv"
	"time"
)

// A spaceNode is what a node told last.
type spaceNode struct {
	at       time.Time
	status   []byte
	returned int64
}

// beat is beat.lua.
func (m *member) beat(_ context.Context, b beat) (board, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.nodes[b.node] = spaceNode{at: now, status: b.status, returned: m.nodes[b.node].returned}
	for from, count := range b.returned {
		if node, known := m.nodes[from]; known {
			node.returned += count
			m.nodes[from] = node
		}
	}
	got := board{returned: m.nodes[b.node].returned, bars: strconv.FormatInt(m.state, 10)}
	for name, node := range m.nodes {
		age := now.Sub(node.at)
		switch {
		case age > forgetAfter:
			delete(m.nodes, name)
		case age <= nodeExpiry && len(got.nodes) < maxNodes:
			got.nodes = append(got.nodes, entry{node: name, status: node.status, age: age})
		}
	}
	return got, nil
}

// bar is bar.lua.
func (m *member) bar(_ context.Context, bars []bar) (refused int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.barred, func(_ string, until time.Time) bool { return !until.After(now) })
	for _, b := range bars {
		old, known := m.barred[b.user]
		if !known && len(m.barred) >= maxBars {
			refused++
			continue
		}
		if until := now.Add(b.left); until.After(old) {
			m.barred[b.user] = until
		}
	}
	m.state++
	return refused, nil
}

func (m *member) bars(context.Context) (state string, bars []bar, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for user, until := range m.barred {
		if left := time.Until(until); left > 0 {
			bars = append(bars, bar{user: user, left: left})
		}
	}
	return strconv.FormatInt(m.state, 10), bars, nil
}
