package app

import (
	"crypto/rand"
	"math"
	"os"
	"strings"
	"time"

	"switchyard/internal/drain"
	httpd "switchyard/internal/http"
	"switchyard/internal/message"
)

// A node's status that is older than statusMaxAge is ignored. A node publishes its
// status every second.
const statusMaxAge = 2500 * time.Millisecond

// moveTargets summarizes the nodes that clients of this node can move to. A node on
// SQLite has no other node beside it, since the log is its own file. Without Redis
// nodes do not know of each other.
func (a *App) moveTargets(scope drain.Scope) drain.MoveTargets {
	if strings.HasPrefix(a.opt.Config.Store.URL.Reveal(), "sqlite:") {
		return drain.MoveTargets{Known: true, SingleNode: true}
	}
	if a.opt.Config.Broker.URL.Reveal() == "" {
		return drain.MoveTargets{}
	}
	nodes, err := a.sharedState.Nodes()
	if err != nil {
		return drain.MoveTargets{}
	}
	return summarizeNodes(nodes, a.node, func(n message.NodeStatus) bool {
		return scope == drain.ScopeDeployment && n.Deployment == a.opt.Config.HTTP.Deployment
	})
}

// summarizeNodes summarizes all nodes except self and those to avoid.
func summarizeNodes(nodes []message.NodeStatus, self string, avoid func(message.NodeStatus) bool) drain.MoveTargets {
	r, minLimit := drain.MoveTargets{Known: true}, 0.0
	for _, n := range nodes {
		if n.Node == self {
			r.ReturnsKnown, r.Returned = true, int(n.Returned)
		} else if n.Leaving > 0 {
			r.DrainingNodes++
		}
		if n.Node == self || avoid(n) {
			continue
		}
		r.Nodes++
		if !n.Ready || n.Age > statusMaxAge {
			continue
		}
		// A balancer sends equally many handshakes to each node, so the lowest limit counts.
		if r.Ready++; r.Ready == 1 || n.HandshakeLimit < minLimit {
			minLimit = n.HandshakeLimit
		}
		r.OtherHandshakes += int(max(0, n.HandshakeRate-n.HandshakesOfMoved))
		r.RefusedHandshakes += int(math.Ceil(n.HandshakesRefused))
		r.HandshakeP95 = max(r.HandshakeP95, n.HandshakeP95)
	}
	r.HandshakeLimit = r.Ready * int(minLimit)
	return r
}

// components returns the state of the parts for /readyz. A broker that is down or
// stale does not make the node unready, since delivery continues through the commit
// feed. Stale is a state of its own because the connection looks healthy then. Neither
// does a shared state that is down or refuses: clients resume by their own positions.
func (a *App) components() []httpd.Component {
	logState, brokerState, deliveryState := "up", "up", "up"
	d := a.hub.Delivery()
	if err := a.log.Check(); err != nil {
		logState = "down"
	}
	switch {
	case !a.broker.Up():
		brokerState = "down"
	case d.BrokerStale:
		brokerState = "stale"
	}
	switch {
	case !d.Verified:
		deliveryState = "starting"
	case d.LocalStale:
		deliveryState = "stale"
	}
	return []httpd.Component{
		{Name: "log", State: logState, Needed: true},
		{Name: "delivery", State: deliveryState, Needed: true},
		{Name: "broker", State: brokerState},
		{Name: "sessions", State: a.sharedState.State()},
	}
}

// nodeName returns the host's name with a random part that distinguishes
// processes on one host.
func nodeName() string {
	return hostName() + "-" + strings.ToLower(rand.Text()[:6])
}

// hostName returns the host's name in letters, digits, dots and hyphens, at most
// 48 of them, since the canary room is named after it.
func hostName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	host = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, host)
	return host[:min(len(host), 48)]
}

// handleNodeEvent passes a node event, of another node or of this one, to the
// part that handles it.
func (a *App) handleNodeEvent(n message.NodeEvent) {
	switch n.Kind {
	case message.EventPresenceChanged:
		a.hub.PresenceChanged(n.Rooms)
	case message.EventMissed:
		a.hub.PresenceChanged(nil)
	case message.EventTakeover, message.EventSessionLive:
		a.http.HandleTakeover(n)
	case message.EventBanned:
		a.http.CloseUser(n.User)
	}
}
