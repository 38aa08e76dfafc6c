package http

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"switchyard/internal/auth"
	"switchyard/internal/broker"
	"switchyard/internal/conn"
	"switchyard/internal/hub"
	"switchyard/internal/message"
	"switchyard/internal/sharedstate"
	"switchyard/internal/store"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// fewRejecting replaces admission.MaxRejecting, because a busy machine can't keep so many
// rejected connections open at the same time.
const fewRejecting = 8

var longStorms = flag.Bool("storm.long", false, "run the tests of large numbers with their full numbers, as make storms does")

// many returns short, or long with -storm.long.
func many(short, long int) int {
	if *longStorms {
		return long
	}
	return short
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "0123456789abcdef-key"

// A node is a whole server in this process, on a real SQLite log.
type node struct {
	*Server
	t        testing.TB
	hub      *hub.Hub
	addr     string
	admin    string
	reg      *prometheus.Registry
	logs     *testkit.Logs
	log      *faultyLog
	presence *observedPresence

	mu    sync.Mutex
	state []Component

	pipes map[string]*testkit.PipeListener // by address, in a bubble
}

// A faultyLog is the real log until it is given a failure: an error for all calls,
// or a panic.
type faultyLog struct {
	*store.SQLite
	committed func(*message.Publication)
	failure   atomic.Pointer[error]
}

var errPanic = errors.New("planted panic")

func (l *faultyLog) setFailure(failure error) { l.failure.Store(&failure) }

func (l *faultyLog) check() error {
	failure := l.failure.Load()
	switch {
	case failure == nil:
		return nil
	case errors.Is(*failure, errPanic):
		panic(*failure)
	}
	return *failure
}

func (l *faultyLog) Append(p *message.Publication) {
	if p.Err = l.check(); p.Err != nil {
		go l.committed(p)
		return
	}
	l.SQLite.Append(p)
}

func (l *faultyLog) AppendBatch(ctx context.Context, batch []*message.Publication) error {
	if err := l.check(); err != nil {
		return err
	}
	return l.SQLite.AppendBatch(ctx, batch)
}

func (l *faultyLog) Read(ctx context.Context, r message.Range) (message.Page, error) {
	if err := l.check(); err != nil {
		return message.Page{}, err
	}
	return l.SQLite.Read(ctx, r)
}

func (l *faultyLog) ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error) {
	if err := l.check(); err != nil {
		return nil, false, err
	}
	return l.SQLite.ListRooms(ctx, prefix, after, limit)
}

// observedPresence is the real presence. It records changes, and fails when its log
// does.
type observedPresence struct {
	*sharedstate.Node
	log *faultyLog

	mu      sync.Mutex
	changes []message.PresenceChange
}

func (o *observedPresence) Change(changes []message.PresenceChange) {
	o.mu.Lock()
	o.changes = append(o.changes, changes...)
	o.mu.Unlock()
	o.Node.Change(changes)
}

func (o *observedPresence) Room(ctx context.Context, room message.Room, limit int) (message.Presence, error) {
	if err := o.log.check(); err != nil {
		return message.Presence{}, err
	}
	return o.Node.Room(ctx, room, limit)
}

// recorded returns the changes so far.
func (o *observedPresence) recorded() []message.PresenceChange {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.changes)
}

// emptyLog returns the file of a migrated log without a message. To migrate it once
// saves the time to migrate each node's log.
var emptyLog = sync.OnceValue(func() []byte {
	dir, err := os.MkdirTemp("", "http-test")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "log.db")
	if err := store.Migrate(context.Background(), "sqlite:"+path); err != nil {
		panic(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return b
})

// startNode starts a node that ends with the test. change may change its settings.
func startNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, reg: prometheus.NewRegistry(), logs: new(testkit.Logs), pipes: map[string]*testkit.PipeListener{}, state: []Component{{Name: "log", State: "up", Needed: true}, {Name: "delivery", State: "up", Needed: true}, {Name: "broker", State: "up"}}}
	logger := slog.New(slog.NewJSONHandler(n.logs, nil))
	path := filepath.Join(t.TempDir(), "log.db")
	if err := os.WriteFile(path, emptyLog(), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := store.OpenSQLite(t.Context(), store.Config{URL: "sqlite:" + path, Logger: logger, Registerer: n.reg})
	if err != nil {
		t.Fatal(err)
	}
	b := broker.NewMemory(new(broker.Bus), broker.Config{Logger: logger, Registerer: n.reg})
	n.log = &faultyLog{SQLite: l, committed: func(p *message.Publication) { n.hub.Completed([]*message.Publication{p}) }}
	shared, err := sharedstate.NewMemory(nil, sharedstate.Config{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	n.presence = &observedPresence{Node: shared, log: n.log}
	verifier, err := auth.New(t.Context(), auth.Config{Logger: logger, Registerer: n.reg})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Verifier: verifier, Bans: shared,
		Memory: conn.NewBudget(256 << 20), Components: n.components, Node: "n1", Color: "blue", Deployment: "d1", Version: "v1",
		APIKeys: map[string]string{"backend": testKey, "other": testKey + "2"},
		Logger:  logger, LogLevel: new(slog.LevelVar), Registerer: n.reg, Gatherer: n.reg,
	}
	if change != nil {
		change(&cfg)
	}
	n.hub = hub.New(hub.Config{
		Log: n.log, Feed: l, Batches: n.log, RoomLister: n.log, Broker: b, Presence: n.presence, Memory: cfg.Memory, Logger: logger, Registerer: n.reg,
	})
	cfg.Hub = n.hub
	b.Start(n.hub.Receive)
	l.Start(n.hub.Completed)
	n.Server = New(cfg)
	shared.Start(sharedstate.Hooks{Notify: n.handleNodeEvent})
	n.addr, n.admin = n.listen("127.0.0.1:8000", n.Serve), n.listen("127.0.0.1:8001", n.ServeAdmin)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
		defer cancel()
		for _, stop := range []func(context.Context) error{n.drain.CloseClients, n.Shutdown, n.hub.Close, shared.Close, b.Close, l.Close} {
			if err := stop(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

// handleNodeEvent passes node events on as the service does.
func (n *node) handleNodeEvent(event message.NodeEvent) {
	switch event.Kind {
	case message.EventTakeover, message.EventSessionLive:
		n.HandleTakeover(event)
	case message.EventBanned:
		n.CloseUser(event.User)
	}
}

func (n *node) components() []Component {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// listen serves on a free port, or in a bubble on an address in memory, and returns
// the address.
func (n *node) listen(memoryAddr string, serve func(net.Listener) error) string {
	addr := memoryAddr
	var l net.Listener
	if _, virtual := bubbles.Load(n.t); virtual {
		n.pipes[addr] = testkit.NewPipeListener()
		l = n.pipes[addr]
	} else {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			n.t.Fatal(err)
		}
		addr = l.Addr().String()
	}
	go func() {
		if err := serve(l); err != nil {
			n.t.Error(err)
		}
	}()
	return addr
}

// logLine waits for a line of the log that contains text.
func (n *node) logLine(text string) (line map[string]any) {
	n.t.Helper()
	testkit.Eventually(n.t, "the log line "+text, func() bool {
		for l := range strings.Lines(n.logs.String()) {
			if strings.Contains(l, text) {
				return json.Unmarshal([]byte(l), &line) == nil
			}
		}
		return false
	})
	return line
}

// metric returns the value of a series, as Prometheus reads it, "" when there is none.
func (n *node) metric(series string) string {
	n.t.Helper()
	_, body := n.call("GET", "/metrics", "", "")
	if value, found := metrictest.Parse(n.t, body).Value(n.t, series); found {
		return fmt.Sprint(value)
	}
	return ""
}

func (n *node) call(method, path, key, body string) (*http.Response, string) {
	n.t.Helper()
	header := http.Header{}
	if key != "" {
		header.Set("Authorization", "Bearer "+key)
	}
	return n.request(method, path, header, strings.NewReader(body))
}

func (n *node) request(method, path string, header http.Header, body io.Reader) (*http.Response, string) {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, "http://"+n.addr+path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	r.Header = header
	if host := header.Get("Host"); host != "" {
		r.Host = host // net/http ignores the header
	}
	client := n.httpClient()
	client.Timeout = testkit.Timeout
	res, err := client.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res, "" // frames follow, not a body
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return res, string(b)
}

// draft returns a message as a backend publishes it.
func draft(room, data string) message.Draft {
	return message.Draft{Room: message.Room(room), From: "api:backend", Data: []byte(data)}
}
