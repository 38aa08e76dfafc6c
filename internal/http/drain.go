package http

import (
	"context"

	"switchyard/internal/audit"
	"switchyard/internal/conn"
	"switchyard/internal/drain"
	"switchyard/internal/session"
)

// newDrain returns what drains the clients of s.
func newDrain(s *Server) *drain.Node {
	record := func(event audit.Event) func(drain.Scope, string) {
		return func(scope drain.Scope, reason string) {
			s.audit.Record(&audit.Line{Event: event, Subject: string(scope), Reason: reason})
		}
	}
	return drain.New(drain.Config{
		Node: s.cfg.Node, Deployment: s.cfg.Deployment,
		Delay: s.cfg.DrainDelay, Window: s.cfg.DrainWindow, Timeout: s.cfg.DrainTimeout, CloseTimeout: conn.CloseTimeout,
		HandshakeRate: s.cfg.MaxHandshakeRate, MoveTargets: s.cfg.MoveTargets, Clients: drainClients{s},
		OnStart: record(audit.DrainBegun), OnCancel: record(audit.DrainCanceled),
		Log: s.log, Registerer: s.cfg.Registerer,
	})
}

// DrainForShutdown moves the clients of a process that is stopping to other nodes, closes
// those that do not move, and waits until they are gone or ctx ends. It can't be canceled.
func (s *Server) DrainForShutdown(ctx context.Context) error { return s.drain.Shutdown(ctx) }

// drainClients are the clients of a server, as its drain sees them. It implements
// drain.Clients.
type drainClients struct{ server *Server }

func (c drainClients) Each(f func(drain.Client)) {
	c.server.openSockets.Each(func(sock *socket) { f(sock) })
}

func (c drainClients) Count() int { return c.server.admission.Count() }

func (c drainClients) Emptied() <-chan struct{} { return c.server.admission.Emptied() }

func (c drainClients) SaveBeforeMove(wave []drain.Client) (saved, unsaved []drain.Client) {
	sessions := make([]*session.Session, len(wave))
	for i, client := range wave {
		sessions[i] = client.(*socket).knownSession()
	}
	for i, isSaved := range c.server.sessions.SaveBeforeMove(sessions) {
		sock := wave[i].(*socket)
		switch {
		case sock.isIdentifying() || sock.knownSession() != sessions[i]:
			// It is getting a session, or got one while others were saved: the next wave
			// saves it.
		case isSaved:
			saved = append(saved, sock)
		default:
			unsaved = append(unsaved, sock)
		}
	}
	return saved, unsaved
}
