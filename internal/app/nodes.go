package app

import (
	"context"
	"crypto/rand"
	"math"
	"os"
	"strings"
	"time"

	httpd "switchyard/internal/http"
	"switchyard/internal/message"
)

// moveClients lets the clients go on elsewhere, and closes those that do not.
func (a *App) moveClients(ctx context.Context) error {
	if err := a.http.DrainForShutdown(ctx); err != nil {
		a.opt.Logger.Warn("drain not done", "error", err)
	}
	return a.http.CloseSockets(ctx)
}

// statusMaxAge is the age at which a node's last word no longer says that it is
// there: it speaks each second.
const statusMaxAge = 2500 * time.Millisecond

// receivers tells how the nodes do where clients of this one may be moved to. A
// node on SQLite has the only log there is; without Redis nodes don't see each
// other.
func (a *App) receivers(scope httpd.Scope) httpd.MoveTargets {
	if strings.HasPrefix(a.opt.Config.Store.URL.Reveal(), "sqlite:") {
		return httpd.MoveTargets{Known: true, SingleNode: true}
	}
	if a.opt.Config.Broker.URL.Reveal() == "" {
		return httpd.MoveTargets{}
	}
	nodes, err := a.sharedState.Nodes()
	if err != nil {
		return httpd.MoveTargets{}
	}
	r, minLimit := httpd.MoveTargets{Known: true}, 0.0
	for _, n := range nodes {
		if n.Node == a.node {
			r.ReturnsKnown, r.Returned = true, int(n.Returned)
		} else if n.Leaving > 0 {
			r.DrainingNodes++
		}
		if n.Node == a.node || scope == httpd.ScopeDeployment && n.Deployment == a.opt.Config.HTTP.Deployment {
			continue
		}
		r.Nodes++
		if !n.Ready || n.Age > statusMaxAge {
			continue
		}
		// A balancer gives to each as much: the one that takes least decides.
		if r.Ready++; r.Ready == 1 || n.HandshakeLimit < minLimit {
			minLimit = n.HandshakeLimit
		}
		r.OtherHandshakes += int(max(0, n.HandshakeRate-n.HandshakesMoved))
		r.RefusedHandshakes += int(math.Ceil(n.HandshakesRefused))
		r.HandshakeP95 = max(r.HandshakeP95, n.HandshakeP95)
	}
	r.HandshakeLimit = r.Ready * int(minLimit)
	return r
}

// components tells /readyz how the parts are. A broker that is away is no
// reason to turn clients away: delivery goes on by the log. Nor is one that
// brings nothing back; but it is to be seen, where the connection alone would
// look well.
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
	}
}

// nodeName is the host's, and what tells two processes on it apart.
func nodeName() string {
	return hostName() + "-" + strings.ToLower(rand.Text()[:6])
}

// hostName is of letters, digits, dots and hyphens, since the name of a room is
// made from it.
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

// handleNodeEvent hands on what another node, or this one, has to tell.
func (a *App) handleNodeEvent(n message.NodeEvent) {
	switch n.Kind {
	case message.EventPresenceChanged:
		a.hub.PresenceChanged(n.Rooms)
	case message.EventMissed:
		a.hub.PresenceChanged(nil)
	case message.EventTakeover, message.EventSessionLive, message.EventBanned:
		a.http.HandleNodeEvent(n)
	}
}
