package load

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
)

// A faultyServer is a service that breaks one promise, or none if fault is "". Now
// and then it cuts a connection instead of an ack. It runs in a bubble of
// synctest, and is the net.Listener of its connections.
type faultyServer struct {
	fault  string
	dials  chan net.Conn
	once   sync.Once
	closed chan struct{} // closed by Close

	mu      sync.Mutex     // Protects following.
	tokens  map[string]int // connections by the Authorization header
	rooms   map[message.Room]*serverRoom
	answers int // to publishes
}

// A serverRoom is a room of a faultyServer.
type serverRoom struct {
	epoch   string
	log     []clientFrame
	ids     map[string]int // to seqs
	members map[*serverConn]bool
}

// A clientFrame is a frame that a client sent. A log holds the publishes.
type clientFrame struct {
	Type, Ref, ID string
	Room          message.Room
	After         *int
	Epoch         string
	Data          json.RawMessage
}

// A serverConn is a connection of a faultyServer.
type serverConn struct {
	conn *websocket.Conn
	out  chan string // frames to send; closed by serve
}

func (c *serverConn) writeLoop() {
	for frame := range c.out {
		_ = c.conn.Write(context.Background(), websocket.MessageText, []byte(frame))
	}
}

// withFaultyServer runs a test in virtual time, with a service that breaks a
// promise.
func withFaultyServer(t *testing.T, fault string, run func(t *testing.T, s *faultyServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &faultyServer{
			fault: fault, dials: make(chan net.Conn), closed: make(chan struct{}),
			rooms: map[message.Room]*serverRoom{}, tokens: map[string]int{},
		}
		server := &http.Server{Handler: s}
		go func() { _ = server.Serve(s) }()
		t.Cleanup(func() { _ = server.Close() })
		run(t, s)
	})
}

// plan directs a plan's clients to the server.
func (s *faultyServer) plan(p Plan) Plan {
	p.URLs, p.Dial = []string{"ws://service/ws"}, s.dial
	return p
}

func (s *faultyServer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	clientEnd, serverEnd := net.Pipe()
	select {
	case s.dials <- serverEnd:
		return clientEnd, nil
	case <-s.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *faultyServer) Accept() (net.Conn, error) {
	select {
	case conn := <-s.dials:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *faultyServer) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (s *faultyServer) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *faultyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.tokens[r.Header.Get("Authorization")]++
	s.mu.Unlock()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	s.serve(conn)
}

func (s *faultyServer) serve(conn *websocket.Conn) {
	c := &serverConn{conn: conn, out: make(chan string, 10_000)}
	var writing sync.WaitGroup
	writing.Go(c.writeLoop)
	defer func() {
		_ = conn.CloseNow()
		s.mu.Lock()
		for _, room := range s.rooms {
			delete(room.members, c)
		}
		s.mu.Unlock()
		close(c.out)
		writing.Wait()
	}()
	c.out <- `{"type":"welcome","user":null,"heartbeat_ms":25000,"max_frame":65536}`
	for {
		_, b, err := conn.Read(context.Background())
		var f clientFrame
		if err != nil || json.Unmarshal(b, &f) != nil || !s.handle(c, f) {
			return
		}
	}
}

// handle answers a frame. It returns false to cut the connection.
func (s *faultyServer) handle(c *serverConn, f clientFrame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.rooms[f.Room]
	if room == nil {
		room = &serverRoom{epoch: "e1", ids: map[string]int{}, members: map[*serverConn]bool{}}
		s.rooms[f.Room] = room
	}
	switch f.Type {
	case "join":
		if s.fault == "rejects readers" && len(room.log) > 0 {
			c.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
			return true
		}
		s.join(c, room, f)
	case "publish":
		return s.publish(c, room, f)
	}
	return true
}

func (s *faultyServer) join(c *serverConn, room *serverRoom, f clientFrame) {
	c.out <- fmt.Sprintf(`{"type":"joined","ref":%q,"room":%q,"epoch":%q,"seq":%d,"first":1}`, f.Ref, f.Room, room.epoch, len(room.log))
	after := *f.After
	if f.Epoch != "" && f.Epoch != room.epoch && after > 0 && s.fault != "a new epoch without a gap" {
		c.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, f.Room, room.epoch, len(room.log))
		after = len(room.log)
	}
	if s.fault == "a resume that skips" && after > 0 {
		after++
	}
	for seq := after + 1; seq <= len(room.log); seq++ {
		c.out <- room.frame(room.log[seq-1], seq)
	}
	room.members[c] = true
}

func (r *serverRoom) frame(f clientFrame, seq int) string {
	return fmt.Sprintf(`{"type":"message","room":%q,"epoch":%q,"seq":%d,"id":%q,"from":null,"at":"2026-01-02T15:04:05Z","data":%s}`,
		f.Room, r.epoch, seq, f.ID, f.Data)
}

// publish stores, delivers and acks a message, except for the fault. Every
// sixtieth answer is a cut, and every eleventh publish gets the fault.
func (s *faultyServer) publish(c *serverConn, room *serverRoom, f clientFrame) bool {
	s.answers++
	switch {
	case s.fault == "refuses all":
		c.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
		return true
	case s.fault == "answers nothing":
		return true
	case s.fault == "rejects a client" && s.answers == 10:
		go func() { _ = c.conn.Close(4003, "you") }() // in the background, because it waits for an answer
		return true
	}
	inject := s.answers%11 == 10
	if seq, stored := room.ids[f.ID]; stored && s.fault != "no ids" {
		c.out <- ackFrame(f, room.epoch, seq)
		return true
	}
	if inject && s.fault == "acks before the commit, which fails" {
		c.out <- ackFrame(f, room.epoch, len(room.log)+1)
		return true
	}
	if inject && s.fault == "delivers before the commit, which fails" {
		for member := range room.members {
			member.out <- room.frame(f, len(room.log)+1)
		}
		return false
	}
	if inject && (s.fault == "a new epoch" || s.fault == "a new epoch without a gap") {
		s.restore(room, f.Room)
	}
	room.log = append(room.log, f)
	seq := len(room.log)
	room.ids[f.ID] = seq
	s.deliver(c, room, f, inject)
	if s.answers%60 == 30 {
		return false
	}
	if inject && s.fault == "acks another seq" {
		seq++
	}
	c.out <- ackFrame(f, room.epoch, seq)
	return true
}

// restore takes three messages off the room's log, as a restore to an older state
// does, and begins a new epoch.
func (s *faultyServer) restore(room *serverRoom, name message.Room) {
	room.epoch += "'"
	for range min(3, len(room.log)) {
		last := len(room.log) - 1
		delete(room.ids, room.log[last].ID)
		room.log = room.log[:last]
	}
	for member := range room.members {
		if s.fault == "a new epoch" {
			member.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, name, room.epoch, len(room.log))
		}
	}
}

// deliver sends the last message to all members, except for the fault.
func (s *faultyServer) deliver(publisher *serverConn, room *serverRoom, f clientFrame, inject bool) {
	frame := room.frame(f, len(room.log))
	for member := range room.members {
		if inject && s.fault == "no repair" && member != publisher {
			continue
		}
		if inject && s.fault == "other data" {
			f.Data = json.RawMessage(`"something else"`)
			frame = room.frame(f, len(room.log))
		}
		member.out <- frame
		if inject && s.fault == "duplicates" {
			member.out <- frame
		}
	}
}

func ackFrame(f clientFrame, epoch string, seq int) string {
	return fmt.Sprintf(`{"type":"ack","ref":%q,"room":%q,"epoch":%q,"seq":%d,"id":%q}`, f.Ref, f.Room, epoch, seq, f.ID)
}

// Whatever promise a service breaks, a run of real clients finds it and names a
// message. A service that breaks none is clean.
func TestARunFindsEveryServerFault(t *testing.T) {
	for fault, want := range map[string]Fault{
		"":                                    "",
		"a new epoch":                         "",
		"acks before the commit, which fails": WrongAck,
		"delivers before the commit, which fails": SeqShared,
		"no ids":                    StoredTwice,
		"acks another seq":          WrongAck,
		"other data":                NotPublished,
		"no repair":                 SilentGap,
		"duplicates":                Doubled,
		"a resume that skips":       SilentGap,
		"a new epoch without a gap": SilentEpoch,
	} {
		t.Run(cmp.Or(fault, "none"), func(t *testing.T) {
			t.Parallel()
			withFaultyServer(t, fault, func(t *testing.T, s *faultyServer) {
				report := start(t, t.Context(), s.plan(Plan{
					Clients: 6, Rooms: 2, Rate: 100, Duration: 2 * time.Second, Cut: 500 * time.Millisecond,
				})).Report()
				if want == "" {
					if report.Verdict != Clean || report.Run.Ended != "the time was up" {
						t.Errorf("publishing ended because %s\n%v", report.Run.Ended, report)
					}
					return
				}
				if report.Verdict != Wrong || report.Faults[want] == 0 {
					t.Errorf("no %s was found: %v", want, report)
				}
				if !slices.ContainsFunc(report.Findings, func(f Finding) bool {
					return f.Fault == want && f.Room != "" && f.Seq > 0 && f.Text != ""
				}) {
					t.Errorf("no finding names a message: %v", report)
				}
			})
		})
	}
}

func TestClientsUseTokensInRotation(t *testing.T) {
	withFaultyServer(t, "", func(t *testing.T, s *faultyServer) {
		run := start(t, t.Context(), s.plan(Plan{
			Tokens: []string{"a", "b"}, Clients: 5, Rooms: 1, Rate: 50, Duration: 200 * time.Millisecond,
		}))
		if report := run.Report(); report.Verdict != Clean {
			t.Error(report)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		// Three clients have the first token and two the second. The preflight and the
		// reader at the end use the first.
		if a, b := s.tokens["Bearer a"], s.tokens["Bearer b"]; a != 5 || b != 2 || len(s.tokens) != 2 {
			t.Errorf("connections by token: %v", s.tokens)
		}
	})
}
