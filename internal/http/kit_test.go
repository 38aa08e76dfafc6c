package http

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"nhooyr.io/websocket"

	"switchyard/internal/auth"
	"switchyard/internal/broker"
	"switchyard/internal/hub"
	"switchyard/internal/message"
	"switchyard/internal/sharedstate"
	"switchyard/internal/store"
)

// fewRejecting stands for maxRejecting: those who are told so must all be there at once, on
// a busy machine, too.
const fewRejecting = 8

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
	logs     *safeBuilder
	log      *faultyLog
	presence *observedPresence

	mu    sync.Mutex
	state []Component
}

type safeBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A faultyLog is the real log until it is given a mood: an error for all calls,
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

// observedPresence are the real presence, noting what it is told, until the log is given
// a mood: then it has that, too.
type observedPresence struct {
	*sharedstate.Node
	log *faultyLog

	mu      sync.Mutex
	changes []message.PresenceChange
}

func (s *observedPresence) Change(changes []message.PresenceChange) {
	s.mu.Lock()
	s.changes = append(s.changes, changes...)
	s.mu.Unlock()
	s.Node.Change(changes)
}

func (s *observedPresence) Room(ctx context.Context, room message.Room, limit int) (message.Presence, error) {
	if err := s.log.check(); err != nil {
		return message.Presence{}, err
	}
	return s.Node.Room(ctx, room, limit)
}

// recorded are the changes so far.
func (s *observedPresence) recorded() []message.PresenceChange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.changes)
}

func startNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, reg: prometheus.NewRegistry(), logs: &safeBuilder{}, state: []Component{{Name: "log", State: "up", Needed: true}, {Name: "delivery", State: "up", Needed: true}, {Name: "broker", State: "up"}}}
	logger := slog.New(slog.NewJSONHandler(n.logs, nil))
	url := "sqlite:" + t.TempDir() + "/log.db"
	if err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	l, err := store.OpenSQLite(t.Context(), store.Config{URL: url, Logger: logger, Registerer: n.reg})
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
	n.hub = hub.New(hub.Config{Log: n.log, Feed: l, Batches: n.log, Directory: n.log, Broker: b, Presence: n.presence, Logger: logger, Registerer: n.reg})
	b.Start(n.hub.Receive)
	l.Start(n.hub.Completed)
	verifier, err := auth.New(t.Context(), auth.Config{Logger: logger, Registerer: n.reg})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Verifier: verifier, Bans: shared,
		Hub: n.hub, Components: n.components, Node: "n1", Color: "blue", Deployment: "d1", Version: "v1",
		APIKeys: map[string]string{"backend": testKey, "other": testKey + "2"},
		Logger:  logger, LogLevel: new(slog.LevelVar), Registerer: n.reg, Gatherer: n.reg,
	}
	if change != nil {
		change(&cfg)
	}
	n.Server = New(cfg)
	shared.Start(sharedstate.Hooks{Notify: n.HandleNodeEvent})
	n.addr, n.admin = n.listen(n.Serve), n.listen(n.ServeAdmin)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for _, stop := range []func(context.Context) error{n.CloseSockets, n.Shutdown, n.hub.Close, shared.Close, b.Close, l.Close} {
			if err := stop(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

func (n *node) components() []Component {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

func (n *node) listen(serve func(net.Listener) error) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	go func() {
		if err := serve(l); err != nil {
			n.t.Error(err)
		}
	}()
	return l.Addr().String()
}

// metric is the value of a series, as Prometheus would read it.
func (n *node) metric(series string) string {
	n.t.Helper()
	_, body := n.call("GET", "/metrics", "", "")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
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
		r.Host = host // net/http takes it from here only
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	res, err := client.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res, "" // what follows is no body
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return res, string(b)
}

// A browser is a WebSocket client of a test.
type browser struct {
	t  testing.TB
	ws *websocket.Conn
}

func (n *node) dial(opts *websocket.DialOptions) *browser {
	n.t.Helper()
	b := n.open(opts)
	if got := b.read(); got["type"] != "welcome" {
		n.t.Fatalf("first frame %v", got)
	}
	return b
}

// open is dial without the welcome.
func (n *node) open(opts *websocket.DialOptions) *browser {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+n.addr+"/ws", opts)
	if err != nil {
		n.t.Fatal(err)
	}
	ws.SetReadLimit(4 << 20)
	n.t.Cleanup(func() { _ = ws.CloseNow() })
	return &browser{n.t, ws}
}

// dialRejected opens a connection that is told at once why it can't stay, and
// returns the close code. It has no welcome.
func (n *node) dialRejected(opts *websocket.DialOptions) websocket.StatusCode {
	n.t.Helper()
	b := n.open(opts)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	_, p, err := b.ws.Read(ctx)
	if code := websocket.CloseStatus(err); code != -1 {
		return code
	}
	n.t.Fatalf("no close frame but %q: %v", p, err)
	return 0
}

func (b *browser) send(format string, args ...any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, format, args...)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) read() map[string]any {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, p, err := b.ws.Read(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(p, &v); err != nil {
		b.t.Fatalf("%s: %v", p, err)
	}
	return v
}

// until reads on to the next frame of a type.
func (b *browser) until(kind string) map[string]any {
	b.t.Helper()
	for {
		if v := b.read(); v["type"] == kind {
			return v
		}
	}
}

// closed reads to the end and returns the close code.
func (b *browser) closed() websocket.StatusCode {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		if _, _, err := b.ws.Read(ctx); err != nil {
			if code := websocket.CloseStatus(err); code != -1 {
				return code
			}
			b.t.Fatalf("no close frame: %v", err)
		}
	}
}

// rawHandshake opens a TCP connection and does the handshake by hand.
func (n *node) rawHandshake(extra string, lines ...string) (net.Conn, *bufio.Reader) {
	n.t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	more := ""
	for _, line := range lines {
		more += line + "\r\n"
	}
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n%s", n.addr, more, extra)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		n.t.Fatalf("handshake: %v %v", res, err)
	}
	return c, br
}

// maskedFrame is a client's frame with a zero mask.
func maskedFrame(first byte, payload string) string {
	var head []byte
	switch {
	case len(payload) < 126:
		head = []byte{first, 0x80 | byte(len(payload))}
	default:
		head = []byte{first, 0x80 | 126, byte(len(payload) >> 8), byte(len(payload))}
	}
	return string(head) + "\x00\x00\x00\x00" + payload
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited 15 s for %s", what)
		case <-tick.C:
		}
	}
}

// draft is what a backend would publish.
func draft(room, data string) message.Draft {
	return message.Draft{Room: message.Room(room), From: "api:backend", Data: []byte(data)}
}
