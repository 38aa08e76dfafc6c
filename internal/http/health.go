package http

import (
	"net/http"

	"switchyard/internal/drain"
)

// A Component is the state of one component in /readyz.
type Component struct {
	Name string
	// State is up, down, or a word or two for what is wrong.
	State string
	// Needed means that the node is not ready unless the component is up.
	Needed bool
}

// probes answer load balancers and process managers.
type probes struct{ server *Server }

// healthz answers that the process runs. It checks nothing else: a restart would
// not help against a database that is down.
func (p *probes) healthz(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readyz answers whether the node accepts new connections, with the state of each
// component.
func (p *probes) readyz(w http.ResponseWriter, _ *http.Request) error {
	status, statusText := http.StatusOK, "ready"
	answer := map[string]any{}
	for _, c := range p.server.cfg.Components() {
		answer[c.Name] = c.State
		if c.Needed && c.State != "up" {
			status, statusText = http.StatusServiceUnavailable, "not ready"
		}
	}
	if d := p.server.drain.State(); d.Phase != "" || p.server.drain.IsClosing() {
		status, statusText = http.StatusServiceUnavailable, "draining"
		if d.Phase == drain.PhaseDrained {
			statusText = drain.PhaseDrained
		}
		answer["drain"] = d
	}
	answer["status"], answer["node"] = statusText, p.server.cfg.Node
	if status != http.StatusOK {
		w.Header().Set("Retry-After", "1")
	}
	return writeJSON(w, status, answer)
}
