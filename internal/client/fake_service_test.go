package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/fakeservice"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// withService runs a test in a synctest bubble, with a service that speaks HTTP and
// WebSocket over pipes and does what the test scripts.
func withService(t *testing.T, run func(t *testing.T, s *fakeService)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &fakeService{t: t, peers: make(chan *peer), welcomeFields: `"user":null`}
		s.PipeListener = fakeservice.Start(t, s)
		s.transport = &http.Transport{DialContext: s.Dial}
		t.Cleanup(s.transport.CloseIdleConnections)
		run(t, s)
	})
}

// A fakeService is the service of a test.
type fakeService struct {
	*testkit.PipeListener
	t         *testing.T
	transport *http.Transport
	peers     chan *peer // accepted connections

	// mu protects the fields below.
	mu            sync.Mutex
	welcomeFields string        // added to the welcome
	statuses      []int         // of the next handshakes; 0 accepts
	problem       string        // the code in the problem document of refusals; "" for those of a proxy
	headers       []http.Header // of all handshakes
	urls          []string      // the hosts of all handshakes
}

// refuseNext refuses the next handshakes as a proxy before the service does.
func (s *fakeService) refuseNext(statuses ...int) { s.refuseNextWith("", statuses...) }

// refuseNextWith refuses the next handshakes with the service's own document.
func (s *fakeService) refuseNextWith(problem string, statuses ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem, s.statuses = problem, statuses
}

func (s *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.headers = append(s.headers, r.Header)
	s.urls = append(s.urls, r.Host)
	status, problem := 0, s.problem
	if len(s.statuses) > 0 {
		status, s.statuses = s.statuses[0], s.statuses[1:]
	}
	s.mu.Unlock()
	if status != 0 && problem != "" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"type":"about:blank","title":"No","status":%d,"code":%q,"request_id":"r1"}`, status, problem)
		return
	}
	if status != 0 {
		http.Error(w, "no", status)
		return
	}
	conn, err := fakeservice.Accept(s.t, w, r)
	if err != nil {
		s.t.Error(err)
		return
	}
	select {
	case s.peers <- &peer{s.t, conn}:
	case <-s.Closed():
		_ = conn.WS.CloseNow()
	}
}

// serve has serve handle each connection.
func (s *fakeService) serve(serve func(*peer)) {
	go func() {
		for {
			select {
			case p := <-s.peers:
				go serve(p)
			case <-s.Closed():
				return
			}
		}
	}()
}

// zeroRandom is a random source that always returns the least number.
func zeroRandom() float64 { return 0 }

// newClient returns a client that is closed when the test ends.
func (s *fakeService) newClient(opts Options) *Client {
	s.t.Helper()
	if opts.URLs == nil {
		opts.URLs = []string{"ws://one/ws"}
	}
	if opts.HTTPClient == nil {
		opts.HTTPClient = &http.Client{Transport: s.transport}
	}
	c, err := New(opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// accept waits for a connection and welcomes it.
func (s *fakeService) accept() *peer {
	s.t.Helper()
	p := s.acceptWithoutWelcome()
	s.mu.Lock()
	extra := s.welcomeFields
	s.mu.Unlock()
	p.send(`{"type":"welcome","session":"s","node":"n1","color":"blue","heartbeat_ms":25000,"max_frame":1000,%s}`, extra)
	synctest.Wait()
	return p
}

func (s *fakeService) acceptWithoutWelcome() *peer {
	s.t.Helper()
	select {
	case p := <-s.peers:
		s.t.Cleanup(func() { _ = p.WS.CloseNow() })
		return p
	case <-time.After(time.Hour):
		s.t.Fatal("the client did not connect within an hour")
		return nil
	}
}

// noConnectionWaits reports whether no connection waits to be accepted.
func (s *fakeService) noConnectionWaits() bool {
	synctest.Wait()
	select {
	case p := <-s.peers:
		_ = p.WS.CloseNow()
		return false
	default:
		return true
	}
}

// noConnectionForAnHour reports whether no connection arrives within an hour.
func (s *fakeService) noConnectionForAnHour() bool {
	select {
	case p := <-s.peers:
		_ = p.WS.CloseNow()
		return false
	case <-time.After(time.Hour):
		return true
	}
}

// A peer is the service's end of one connection.
type peer struct {
	t *testing.T
	*fakeservice.Conn
}

func (p *peer) send(format string, args ...any) {
	p.t.Helper()
	if err := p.WS.Write(context.Background(), websocket.MessageText, fmt.Appendf(nil, format, args...)); err != nil {
		p.t.Fatalf("the service writes: %v", err)
	}
}

func (p *peer) message(seq int, id, from string) {
	p.t.Helper()
	p.send("%s", fakeservice.Frame{Room: "r", ID: id, Data: fmt.Append(nil, seq)}.Message("e", seq, from))
}

// expect returns the next frame, which must be of that type.
func (p *peer) expect(kind string) fakeservice.Frame {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, b, err := p.WS.Read(ctx)
	if err != nil {
		p.t.Fatalf("wait for a frame of type %s: %v", kind, err)
	}
	var f fakeservice.Frame
	if err := json.Unmarshal(b, &f); err != nil {
		p.t.Fatalf("%s: %v", b, err)
	}
	if f.Type != kind {
		p.t.Fatalf("the client sent %s, want a frame of type %s", b, kind)
	}
	return f
}

// acceptJoin answers the client's next frame, a join, and returns it.
func (p *peer) acceptJoin(head int) fakeservice.Frame {
	p.t.Helper()
	f := p.expect("join")
	p.send("%s", f.Joined("e", head))
	return f
}

func (p *peer) ack(f fakeservice.Frame, seq int) {
	p.t.Helper()
	p.send("%s", f.Ack("e", seq, false))
}

func (p *peer) refuse(f fakeservice.Frame, code string, more string) {
	p.t.Helper()
	p.send("%s", f.Error(code, more))
}

// closeWith closes with a code, or breaks the connection when it is 0, and waits
// until the client has handled that.
func (p *peer) closeWith(code int) {
	if code == 0 {
		_ = p.WS.CloseNow()
	} else {
		_ = p.WS.Close(websocket.StatusCode(code), "scripted")
	}
	synctest.Wait()
}

// An eventLog records the calls of a handler.
type eventLog struct {
	mu     sync.Mutex
	events []string
}

func (r *eventLog) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

// want compares the events once every goroutine of the bubble is blocked.
func (r *eventLog) want(t *testing.T, events ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if fmt.Sprint(r.events) != fmt.Sprint(events) {
		t.Fatalf("the events are %q, want %q", r.events, events)
	}
}

func (r *eventLog) handler() Handler {
	return Handler{
		Message: func(m message.Message) { r.add("%s/%d", m.Epoch, m.Seq) },
		Gap:     func(g Gap) { r.add("gap %s %d-%d %s", g.Epoch, g.From, g.To, g.Reason) },
		Signal:  func(s Signal) { r.add("signal %s %s", s.From, s.Data) },
		Joined:  func(j Joined) { r.add("joined %d", j.Head) },
		Ended:   func(err error) { r.add("ended %v", err) },
	}
}

type joinResult struct {
	joined Joined
	err    error
}

// join joins in the background.
func (r *eventLog) join(c *Client, room message.Room, from Position) <-chan joinResult {
	out := make(chan joinResult, 1)
	go func() {
		j, err := c.Join(context.Background(), room, from, r.handler())
		out <- joinResult{j, err}
	}()
	synctest.Wait()
	return out
}

type ackResult struct {
	ack Ack
	err error
}

// publish publishes in the background. The publishes are in the order of the calls.
func publish(c *Client, room message.Room, id string) <-chan ackResult {
	out := make(chan ackResult, 1)
	go func() {
		ack, err := c.Publish(context.Background(), room, json.RawMessage(`{"a" : "<&>"}`), id)
		out <- ackResult{ack, err}
	}()
	synctest.Wait()
	return out
}

// stillPending checks that a channel has no result yet.
func stillPending[T any](t *testing.T, ch <-chan T) {
	t.Helper()
	synctest.Wait()
	select {
	case v := <-ch:
		t.Fatalf("completed too early: %+v", v)
	default:
	}
}
