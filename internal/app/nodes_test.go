package app

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"switchyard/internal/config"
	"switchyard/internal/drain"
	"switchyard/internal/message"
)

// A draining node paces its moves by the nodes that can take its clients.
func TestMoveTargetsAreTheReadyNodes(t *testing.T) {
	healthy := message.NodeStatus{Node: "b", Deployment: "d1", Ready: true, HandshakeLimit: 500, HandshakeRate: 30, HandshakesOfMoved: 10, HandshakesRefused: 0.2, HandshakeP95: 40 * time.Millisecond}
	with := func(change func(*message.NodeStatus)) message.NodeStatus {
		n := healthy
		change(&n)
		return n
	}
	none := func(message.NodeStatus) bool { return false }
	for _, tt := range []struct {
		name  string
		nodes []message.NodeStatus
		avoid func(message.NodeStatus) bool
		want  drain.MoveTargets
	}{
		{name: "no other node", want: drain.MoveTargets{Known: true}},
		{
			name: "the node itself is no target", nodes: []message.NodeStatus{with(func(n *message.NodeStatus) { n.Node, n.Returned, n.Leaving = "a", 7, 3 })},
			want: drain.MoveTargets{Known: true, ReturnsKnown: true, Returned: 7},
		},
		{
			name: "a ready node", nodes: []message.NodeStatus{healthy},
			want: drain.MoveTargets{Known: true, Nodes: 1, Ready: 1, HandshakeLimit: 500, OtherHandshakes: 20, RefusedHandshakes: 1, HandshakeP95: 40 * time.Millisecond},
		},
		{
			name: "a node that is not ready", nodes: []message.NodeStatus{with(func(n *message.NodeStatus) { n.Ready = false })},
			want: drain.MoveTargets{Known: true, Nodes: 1},
		},
		{
			name: "a node whose status is too old", nodes: []message.NodeStatus{with(func(n *message.NodeStatus) { n.Age = 2501 * time.Millisecond })},
			want: drain.MoveTargets{Known: true, Nodes: 1},
		},
		{
			name: "another node that drains", nodes: []message.NodeStatus{with(func(n *message.NodeStatus) { n.Ready, n.Leaving = false, 1 })},
			want: drain.MoveTargets{Known: true, Nodes: 1, DrainingNodes: 1},
		},
		{
			name: "a node to avoid", nodes: []message.NodeStatus{healthy}, avoid: func(n message.NodeStatus) bool { return n.Deployment == "d1" },
			want: drain.MoveTargets{Known: true},
		},
		{
			name: "the lowest limit and the highest p95 of several count",
			nodes: []message.NodeStatus{healthy, with(func(n *message.NodeStatus) {
				n.Node, n.HandshakeLimit, n.HandshakeRate, n.HandshakeP95 = "c", 100, 5, time.Second
			}), healthy},
			want: drain.MoveTargets{Known: true, Nodes: 3, Ready: 3, HandshakeLimit: 300, OtherHandshakes: 40, RefusedHandshakes: 3, HandshakeP95: time.Second},
		},
	} {
		if tt.avoid == nil {
			tt.avoid = none
		}
		if got := summarizeNodes(tt.nodes, "a", tt.avoid); got != tt.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

// Without a database and a broker for several nodes there are no targets to know of.
func TestMoveTargetsOfASingleNode(t *testing.T) {
	a := &App{opt: Options{Config: config.Config{Store: config.Store{URL: "sqlite:log.db"}}}}
	if got := a.moveTargets(drain.ScopeNode); got != (drain.MoveTargets{Known: true, SingleNode: true}) {
		t.Errorf("on SQLite: %+v", got)
	}
	a.opt.Config.Store.URL = "postgres://h/d"
	if got := a.moveTargets(drain.ScopeNode); got != (drain.MoveTargets{}) {
		t.Errorf("without Redis: %+v", got)
	}
}

func TestTheHostNameCanNameARoom(t *testing.T) {
	name := hostName()
	if name == "" || len(name) > 48 {
		t.Errorf("%q has %d bytes", name, len(name))
	}
	if a, b := nodeName(), nodeName(); a == b || a[:len(name)+1] != name+"-" {
		t.Errorf("two processes of the host are %q and %q", a, b)
	}
}

// The audit log is appended to, and only its owner can read it.
func TestTheAuditLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 2 {
		a := &App{opt: Options{Config: config.Config{Log: config.Log{Audit: path}}}}
		if err := a.openAudit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.audit.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
		if len(a.lifecycle.steps) != 1 {
			t.Fatalf("%d steps close it", len(a.lifecycle.steps))
		}
		if err := a.lifecycle.steps[0].stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "line\nline\n" {
		t.Errorf("%q, %v", text, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestTheAuditLogOnAStandardStream(t *testing.T) {
	for setting, want := range map[string]*os.File{"stdout": os.Stdout, "stderr": os.Stderr, "off": nil} {
		a := &App{opt: Options{Config: config.Config{Log: config.Log{Audit: setting}}, Stdout: os.Stdout, Stderr: os.Stderr}}
		if err := a.openAudit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want == nil && a.audit != nil || want != nil && a.audit != want {
			t.Errorf("AUDIT_LOG=%s writes to %v", setting, a.audit)
		}
	}
}

// Any kind of key closes the service to those without a token.
func TestOneKindOfKeyIsEnoughToRequireTokens(t *testing.T) {
	if !hasNoTokenKeys(config.Auth{}) {
		t.Error("no setting is taken for a key")
	}
	for name, c := range map[string]config.Auth{
		"AUTH_JWT_SECRET": {JWTSecrets: config.Secrets{"x"}}, "AUTH_KEY_FILE": {KeyFile: "x"}, "AUTH_JWKS_URL": {JWKSURL: "x"},
	} {
		if hasNoTokenKeys(c) {
			t.Errorf("%s is not taken for a key", name)
		}
	}
}
