package stack

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	pm "github.com/prometheus/common/model"
)

// A ColorSpec is the state that a color should have.
type ColorSpec struct {
	Color      Color  `json:"color"`
	Image      Image  `json:"image"`
	Deployment string `json:"deployment"`
	Replicas   int    `json:"replicas"`
}

// A Snapshot is the state of all replicas at one moment.
type Snapshot struct {
	At       time.Time           `json:"at"`
	Replicas map[Color][]Replica `json:"replicas"`
}

// A Replica is one container of a color.
type Replica struct {
	Name       string `json:"name"`
	Number     int    `json:"number"`
	Image      Image  `json:"image"`
	Deployment string `json:"deployment"`
	Version    string `json:"version,omitempty"`
	Running    bool   `json:"running"`
	// Restarts is how often the engine restarted the container. ExitReason says
	// how it ended last, and is empty if it never did.
	Restarts   int    `json:"restarts"`
	ExitReason string `json:"ended,omitempty"`
	// Address is host:port inside its network.
	Address string `json:"address,omitempty"`
	// MemoryLimit is in bytes; 0 means no limit.
	MemoryLimit int64 `json:"memory_limit,omitempty"`
	Health
}

// Health is what a replica reports of itself.
type Health struct {
	// Reachable is false if the replica did not answer at all.
	Reachable bool `json:"answers"`
	// Ready means that it takes new connections.
	Ready bool `json:"ready"`
	// Drain is the phase of its drain (delay, moving, closing or drained), empty
	// when it serves.
	Drain string `json:"drain,omitempty"`
	// UnhealthyComponents maps the components that are not up to their states.
	UnhealthyComponents map[string]string `json:"parts,omitempty"`
	Clients             int               `json:"clients"`
	// ResidentMemory is in bytes.
	ResidentMemory int64 `json:"-"`
	// LostClients counts clients of the present drain whose connection broke.
	LostClients int `json:"lost,omitempty"`
}

// Serves reports whether the replica takes clients.
func (r Replica) Serves() bool { return r.Running && r.Ready && r.Drain == "" }

// Problem says why the replica is unhealthy, or "" if it is healthy. A drain is
// not a problem.
func (r Replica) Problem() string {
	switch {
	case !r.Running:
		return "it does not run: " + cmp.Or(r.ExitReason, "it was stopped")
	case !r.Reachable:
		return "it does not answer"
	}
	for _, part := range []string{"log", "delivery"} { // without these it is not ready
		if state := r.UnhealthyComponents[part]; state != "" {
			return part + " " + state
		}
	}
	if !r.Ready && r.Drain == "" {
		return "it is not ready"
	}
	return ""
}

// Running returns the running replicas of a color.
func (s Snapshot) Running(c Color) []Replica {
	return slices.DeleteFunc(slices.Clone(s.Replicas[c]), func(r Replica) bool { return !r.Running })
}

// CountServing returns how many of a color's replicas take clients.
func (s Snapshot) CountServing(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		if r.Serves() {
			n++
		}
	}
	return n
}

// CountClients returns how many clients a color has.
func (s Snapshot) CountClients(c Color) (n int) {
	for _, r := range s.Replicas[c] {
		n += r.Clients
	}
	return n
}

// MemoryLimit returns the largest memory limit of a deployment's replicas in bytes; 0
// means no limit.
func (s Snapshot) MemoryLimit(deployment string) (limit int64) {
	for _, r := range slices.Concat(s.Replicas[Blue], s.Replicas[Green]) {
		if r.Deployment == deployment {
			limit = max(limit, r.MemoryLimit)
		}
	}
	return limit
}

// RunningNames returns the names of a color's running replicas for which pass is
// true.
func (s Snapshot) RunningNames(c Color, pass func(Replica) bool) (names []string) {
	for _, r := range s.Running(c) {
		if pass(r) {
			names = append(names, r.Name)
		}
	}
	return names
}

// Spec returns the spec that a color runs now. It has no replicas if the color does not
// run.
func (s Snapshot) Spec(c Color) ColorSpec {
	l := ColorSpec{Color: c, Replicas: len(s.Running(c))}
	if l.Replicas > 0 {
		l.Image, l.Deployment = s.Running(c)[0].Image, s.Running(c)[0].Deployment
	}
	return l
}

// DescribeProblems names each unhealthy replica of a color and its problem.
func (s Snapshot) DescribeProblems(c Color) string {
	var b strings.Builder
	for _, r := range s.Replicas[c] {
		if t := r.Problem(); t != "" {
			fmt.Fprintf(&b, "; %s: %s", r.Name, t)
		}
	}
	return b.String()
}

// replica returns the replica of a container, without its health.
func (c Container) replica() Replica {
	r := Replica{
		Name: c.Name, Number: c.Number, Image: c.Image, Deployment: c.Deployment, Running: c.Running,
		Restarts: c.Restarts, ExitReason: c.ExitReason, MemoryLimit: c.MemoryLimit,
	}
	if c.Address != "" {
		r.Address = net.JoinHostPort(c.Address, appPort)
	}
	return r
}

// queryReplica asks a replica for its health, its number of clients and its
// version. A replica that does not answer is not Reachable.
func queryReplica(ctx context.Context, client *http.Client, address string) (h Health, version string) {
	_, body, err := Fetch(ctx, client, "http://"+address+"/readyz")
	if err != nil {
		return h, ""
	}
	var ready struct {
		Status, Log, Delivery, Broker, Sessions string
		Drain                                   struct {
			Phase string
			Lost  int
		}
	}
	if json.Unmarshal(body, &ready) != nil {
		return h, ""
	}
	h = Health{Reachable: true, Ready: ready.Status == "ready", Drain: ready.Drain.Phase, LostClients: ready.Drain.Lost, UnhealthyComponents: map[string]string{}}
	if ready.Status == "draining" && h.Drain == "" {
		h.Drain = "delay"
	}
	for component, state := range map[string]string{"log": ready.Log, "delivery": ready.Delivery, "broker": ready.Broker, "sessions": ready.Sessions} {
		if state != "" && state != "up" {
			h.UnhealthyComponents[component] = state
		}
	}
	samples, err := FetchMetrics(ctx, client, address)
	if err != nil {
		return h, ""
	}
	for _, s := range samples {
		switch s.Metric[pm.MetricNameLabel] {
		case "websocket_active_connections":
			h.Clients = int(s.Value)
		case "process_resident_memory_bytes":
			h.ResidentMemory = int64(s.Value)
		case "switchyard_build_info":
			version = string(s.Metric["version"])
		}
	}
	return h, version
}
