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

// A liar is a service with one promise broken, the empty one with none. Now and
// then it cuts a connection instead of acking.
type liar struct {
	lie string

	mu      sync.Mutex
	tokens  map[string]int // connections
	rooms   map[message.Room]*lyingRoom
	answers int
}

type lyingRoom struct {
	epoch   string
	log     []request
	ids     map[string]int // to seqs
	members map[*liarPeer]bool
}

// A request is a client's frame; as part of a log, its publish.
type request struct {
	Type, Ref, ID string
	Room          message.Room
	After         *int
	Epoch         string
	Data          json.RawMessage
}

type liarPeer struct {
	conn *websocket.Conn
	out  chan string // closed by serve
}

func (p *liarPeer) writeLoop() {
	for frame := range p.out {
		_ = p.conn.Write(context.Background(), websocket.MessageText, []byte(frame))
	}
}

// lying starts a liar and returns it with its address.
func lying(t *testing.T, lie string) (*liar, string) {
	t.Helper()
	l := &liar{lie: lie, rooms: map[message.Room]*lyingRoom{}, tokens: map[string]int{}}
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

func (l *liar) serve(conn *websocket.Conn) {
	p := &liarPeer{conn: conn, out: make(chan string, 10_000)}
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
		var f request
		if err != nil || json.Unmarshal(b, &f) != nil || !l.handle(p, f) {
			return
		}
	}
}

// handle answers a frame; false cuts the connection.
func (l *liar) handle(p *liarPeer, f request) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := l.rooms[f.Room]
	if room == nil {
		room = &lyingRoom{epoch: "e1", ids: map[string]int{}, members: map[*liarPeer]bool{}}
		l.rooms[f.Room] = room
	}
	switch f.Type {
	case "join":
		if l.lie == "lets no reader in" && len(room.log) > 0 {
			p.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
			return true
		}
		l.join(p, room, f)
	case "publish":
		return l.publish(p, room, f)
	}
	return true
}

func (l *liar) join(p *liarPeer, room *lyingRoom, f request) {
	p.out <- fmt.Sprintf(`{"type":"joined","ref":%q,"room":%q,"epoch":%q,"seq":%d,"first":1}`, f.Ref, f.Room, room.epoch, len(room.log))
	after := *f.After
	if f.Epoch != "" && f.Epoch != room.epoch && after > 0 && l.lie != "no word of a new epoch" {
		p.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, f.Room, room.epoch, len(room.log))
		after = len(room.log)
	}
	if l.lie == "a resume that skips" && after > 0 {
		after++
	}
	for seq := after + 1; seq <= len(room.log); seq++ {
		p.out <- room.frame(room.log[seq-1], seq)
	}
	room.members[p] = true
}

func (r *lyingRoom) frame(f request, seq int) string {
	return fmt.Sprintf(`{"type":"message","room":%q,"epoch":%q,"seq":%d,"id":%q,"from":null,"at":"2026-01-02T15:04:05Z","data":%s}`,
		f.Room, r.epoch, seq, f.ID, f.Data)
}

// publish stores, delivers and acks, more or less. Every
// sixtieth answer is a cut, and every eleventh publish meets the lie.
func (l *liar) publish(p *liarPeer, room *lyingRoom, f request) bool {
	l.answers++
	switch {
	case l.lie == "refuses all":
		p.out <- fmt.Sprintf(`{"type":"error","ref":%q,"code":"forbidden","message":"no"}`, f.Ref)
		return true
	case l.lie == "answers nothing":
		return true
	case l.lie == "turns somebody away" && l.answers == 10:
		go func() { _ = p.conn.Close(4003, "you") }() // which waits for an answer
		return true
	}
	chance := l.answers%11 == 10
	if seq, stored := room.ids[f.ID]; stored && l.lie != "no ids" {
		p.out <- ackFrame(f, room.epoch, seq)
		return true
	}
	if chance && l.lie == "acks before the commit, which fails" {
		p.out <- ackFrame(f, room.epoch, len(room.log)+1)
		return true
	}
	if chance && l.lie == "delivers before the commit, which fails" {
		for member := range room.members {
			member.out <- room.frame(f, len(room.log)+1)
		}
		return false
	}
	if chance && l.lie == "a new epoch" || chance && l.lie == "no word of a new epoch" {
		l.restore(room, f.Room)
	}
	room.log = append(room.log, f)
	seq := len(room.log)
	room.ids[f.ID] = seq
	l.deliver(p, room, f, chance)
	if l.answers%60 == 30 {
		return false
	}
	if chance && l.lie == "acks another seq" {
		seq++
	}
	p.out <- ackFrame(f, room.epoch, seq)
	return true
}

// restore brings the room back by three messages.
func (l *liar) restore(room *lyingRoom, name message.Room) {
	room.epoch += "'"
	for range min(3, len(room.log)) {
		last := len(room.log) - 1
		delete(room.ids, room.log[last].ID)
		room.log = room.log[:last]
	}
	for member := range room.members {
		if l.lie == "a new epoch" {
			member.out <- fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, name, room.epoch, len(room.log))
		}
	}
}

func (l *liar) deliver(publisher *liarPeer, room *lyingRoom, f request, chance bool) {
	frame := room.frame(f, len(room.log))
	for member := range room.members {
		if chance && l.lie == "no repair" && member != publisher {
			continue
		}
		if chance && l.lie == "other data" {
			f.Data = json.RawMessage(`"something else"`)
			frame = room.frame(f, len(room.log))
		}
		member.out <- frame
		if chance && l.lie == "doubles" {
			member.out <- frame
		}
	}
}

func ackFrame(f request, epoch string, seq int) string {
	return fmt.Sprintf(`{"type":"ack","ref":%q,"room":%q,"epoch":%q,"seq":%d,"id":%q}`, f.Ref, f.Room, epoch, seq, f.ID)
}

// Whatever promise a service breaks, a run of real clients finds it and names a
// message; the service that breaks none passes.
func TestARunFindsOutWhoLies(t *testing.T) {
	for lie, fault := range map[string]Fault{
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
		t.Run(lie, func(t *testing.T) {
			t.Parallel()
			_, url := lying(t, lie)
			plan := Plan{URLs: []string{url}, Clients: 6, Rooms: 2, Rate: 100, Duration: 2 * time.Second, Cut: 500 * time.Millisecond}
			if fault != "" {
				plan.Settle = 8 * time.Second // some never do
			}
			run := start(t, t.Context(), plan)
			report := run.Report()
			if fault == "" {
				if report.Verdict != Clean {
					t.Error(report)
				}
				return
			}
			if report.Verdict != Wrong || report.Faults[fault] == 0 {
				t.Errorf("no %s was found: %v", fault, report)
			}
			for _, f := range report.Findings {
				if f.Fault == fault && f.Room != "" && f.Seq > 0 && f.Text != "" {
					return
				}
			}
			t.Errorf("nothing is named: %v", report)
		})
	}
}

func TestClientsTakeTokensInTurns(t *testing.T) {
	service, url := lying(t, "")
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
