package load

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
)

// A faultyServer is a service with one promise broken, the empty one with none. Now and
// then it cuts a connection instead of acking.
type faultyServer struct {
	fault string

	mu      sync.Mutex
	tokens  map[string]int // connections
	rooms   map[message.Room]*serverRoom
	answers int
}

type serverRoom struct {
	epoch   string
	log     []clientFrame
	ids     map[string]int // to seqs
	members map[*serverConn]bool
}

// A clientFrame is a client's frame; as part of a log, its publish.
type clientFrame struct {
	Type, Ref, ID string
	Room          message.Room
	After         *int
	Epoch         string
	Data          json.RawMessage
}

type serverConn struct {
	conn *websocket.Conn
	out  chan string // closed by serve
}

func (p *serverConn) writeLoop() {
	for frame := range p.out {
		_ = p.conn.Write(context.Background(), websocket.MessageText, []byte(frame))
	}
}

// startFaultyServer starts a liar and returns it with its address.
func startFaultyServer(t *testing.T, fault string) (*faultyServer, string) {
	t.Helper()
	l := &faultyServer{fault: fault, rooms: map[message.Room]*serverRoom{}, tokens: map[string]int{}}
	var serving sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		l.mu.Lock()
		l.tokens[r.Header.Get("Authorization")]++
		l.mu.Unlock()
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		l.serve(conn)
	}))
	t.Cleanup(func() { server.Close(); serving.Wait() })
	return l, "ws" + strings.TrimPrefix(server.URL, "http") + "/ws"
}

func (l *faultyServer) serve(conn *websocket.Conn) {
	p := &serverConn{conn: conn, out: make(chan string, 10_000)}
	var writing sync.WaitGroup
	writing.Go(p.writeLoop)
	defer func() {
		_ = conn.CloseNow()
		l.mu.Lock()
		for _, room := range l.rooms {
			delete(room.members, p)
		}
		l.mu.Unlock()
		close(p.out)
		writing.Wait()
	}()
	p.out <- `{"type":"welcome","user":null,"heartbeat_ms":25000,"max_frame":65536}`
	for {
		_, b, err := conn.Read(context.Background())
		var f clientFrame
		if err != nil || json.Unmarshal(b, &f) != nil || !l.handle(p, f) {
			return
		}
	}
}

// handle answers a frame; false cuts the connection.
func (l *faultyServer) handle(p *serverConn, f clientFrame) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := l.rooms[f.Room]
	if room == nil {
		room = &serverRoom{epoch: "e1", ids: map[string]int{}, members: map[*serverConn]bool{}}
		l.rooms[f.Room] = room
	}
	switch f.Type {
	case "join":
		if l.fault == "lets no reader in" && len(room.log) > 0 {
			p.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
			return true
		}
		l.join(p, room, f)
	case "publish":
		return l.publish(p, room, f)
	}
	return true
}

func (l *faultyServer) join(p *serverConn, room *serverRoom, f clientFrame) {
	p.out <- fmt.Sprintf(`{"type":"joined","ref":%q,"room":%q,"epoch":%q,"seq":%d,"first":1}`, f.Ref, f.Room, room.epoch, len(room.log))
	after := *f.After
	if f.Epoch != "" && f.Epoch != room.epoch && after > 0 && l.fault != "no word of a new epoch" {
		p.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, f.Room, room.epoch, len(room.log))
		after = len(room.log)
	}
	if l.fault == "a resume that skips" && after > 0 {
		after++
	}
	for seq := after + 1; seq <= len(room.log); seq++ {
		p.out <- room.frame(room.log[seq-1], seq)
	}
	room.members[p] = true
}

func (r *serverRoom) frame(f clientFrame, seq int) string {
	return fmt.Sprintf(`{"type":"message","room":%q,"epoch":%q,"seq":%d,"id":%q,"from":null,"at":"2026-01-02T15:04:05Z","data":%s}`,
		f.Room, r.epoch, seq, f.ID, f.Data)
}

// publish stores, delivers and acks, more or less. Every
// sixtieth answer is a cut, and every eleventh publish meets the lie.
func (l *faultyServer) publish(p *serverConn, room *serverRoom, f clientFrame) bool {
	l.answers++
	switch {
	case l.fault == "refuses all":
		p.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
		return true
	case l.fault == "answers nothing":
		return true
	case l.fault == "turns somebody away" && l.answers == 10:
		go func() { _ = p.conn.Close(4003, "you") }() // which waits for an answer
		return true
	}
	inject := l.answers%11 == 10
	if seq, stored := room.ids[f.ID]; stored && l.fault != "no ids" {
		p.out <- ackFrame(f, room.epoch, seq)
		return true
	}
	if inject && l.fault == "acks before the commit, which fails" {
		p.out <- ackFrame(f, room.epoch, len(room.log)+1)
		return true
	}
	if inject && l.fault == "delivers before the commit, which fails" {
		for member := range room.members {
			member.out <- room.frame(f, len(room.log)+1)
		}
		return false
	}
	if inject && l.fault == "a new epoch" || inject && l.fault == "no word of a new epoch" {
		l.restore(room, f.Room)
	}
	room.log = append(room.log, f)
	seq := len(room.log)
	room.ids[f.ID] = seq
	l.deliver(p, room, f, inject)
	if l.answers%60 == 30 {
		return false
	}
	if inject && l.fault == "acks another seq" {
		seq++
	}
	p.out <- ackFrame(f, room.epoch, seq)
	return true
}

// restore brings the room back by three messages.
func (l *faultyServer) restore(room *serverRoom, name message.Room) {
	room.epoch += "'"
	for range min(3, len(room.log)) {
		last := len(room.log) - 1
		delete(room.ids, room.log[last].ID)
		room.log = room.log[:last]
	}
	for member := range room.members {
		if l.fault == "a new epoch" {
			member.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, name, room.epoch, len(room.log))
		}
	}
}

func (l *faultyServer) deliver(publisher *serverConn, room *serverRoom, f clientFrame, inject bool) {
	frame := room.frame(f, len(room.log))
	for member := range room.members {
		if inject && l.fault == "no repair" && member != publisher {
			continue
		}
		if inject && l.fault == "other data" {
			f.Data = json.RawMessage(`"something else"`)
			frame = room.frame(f, len(room.log))
		}
		member.out <- frame
		if inject && l.fault == "doubles" {
			member.out <- frame
		}
	}
}

func ackFrame(f clientFrame, epoch string, seq int) string {
	return fmt.Sprintf(`{"type":"ack","ref":%q,"room":%q,"epoch":%q,"seq":%d,"id":%q}`, f.Ref, f.Room, epoch, seq, f.ID)
}

// Whatever promise a service breaks, a run of real clients finds it and names a
// message; the service that breaks none passes.
func TestARunFindsEveryServerFault(t *testing.T) {
	for fault, want := range map[string]Fault{
		"":                                    "",
		"a new epoch":                         "",
		"acks before the commit, which fails": WrongAck,
		"delivers before the commit, which fails": SeqShared,
		"no ids":                 StoredTwice,
		"acks another seq":       WrongAck,
		"other data":             Undeclared,
		"no repair":              SilentGap,
		"doubles":                Doubled,
		"a resume that skips":    SilentGap,
		"no word of a new epoch": SilentEpoch,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			_, url := startFaultyServer(t, fault)
			plan := Plan{URLs: []string{url}, Clients: 6, Rooms: 2, Rate: 100, Duration: 2 * time.Second, Cut: 500 * time.Millisecond}
			if want != "" {
				plan.Settle = 8 * time.Second // some never do
			}
			run := start(t, t.Context(), plan)
			report := run.Report()
			if want == "" {
				if report.Verdict != Clean {
					t.Error(report)
				}
				return
			}
			if report.Verdict != Wrong || report.Faults[want] == 0 {
				t.Errorf("no %s was found: %v", want, report)
			}
			for _, f := range report.Findings {
				if f.Fault == want && f.Room != "" && f.Seq > 0 && f.Text != "" {
					return
				}
			}
			t.Errorf("nothing is named: %v", report)
		})
	}
}

func TestClientsUseTokensInRotation(t *testing.T) {
	service, url := startFaultyServer(t, "")
	run := start(t, t.Context(), Plan{URLs: []string{url}, Tokens: []string{"a", "b"}, Clients: 5, Rooms: 1, Rate: 50, Duration: 200 * time.Millisecond})
	if report := run.Report(); report.Verdict != Clean {
		t.Error(report)
	}
	service.mu.Lock()
	defer service.mu.Unlock()
	// Three and two clients; the probe before and the reader after have the first.
	if a, b := service.tokens["Bearer a"], service.tokens["Bearer b"]; a != 5 || b != 2 || len(service.tokens) != 2 {
		t.Errorf("connections by token: %v", service.tokens)
	}
}
