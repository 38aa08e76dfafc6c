package load

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/fakeservice"
)

// A faultyServer is a service that breaks one promise, or none if fault is "". Now
// and then it cuts a connection instead of an ack. It runs in a bubble of
// synctest.
type faultyServer struct {
	*testkit.PipeListener
	fault string

	mu      sync.Mutex     // Protects following.
	tokens  map[string]int // connections by the Authorization header
	rooms   map[message.Room]*serverRoom
	answers int // to publishes
}

// A serverRoom is a room of a faultyServer.
type serverRoom struct {
	epoch   message.Epoch
	log     []fakeservice.Frame // publishes
	ids     map[string]int      // to seqs
	members map[*fakeservice.Conn]bool
}

// withFaultyServer runs a test in virtual time, with a service that breaks a
// promise.
func withFaultyServer(t *testing.T, fault string, run func(t *testing.T, s *faultyServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &faultyServer{fault: fault, rooms: map[message.Room]*serverRoom{}, tokens: map[string]int{}}
		s.PipeListener = fakeservice.Start(t, s.handler(t))
		run(t, s)
	})
}

// plan directs a plan's clients to the server.
func (s *faultyServer) plan(p Plan) Plan {
	p.URLs, p.Dial = []string{"ws://service/ws"}, s.Dial
	return p
}

func (s *faultyServer) handler(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.tokens[r.Header.Get("Authorization")]++
		s.mu.Unlock()
		if c, err := fakeservice.Accept(t, w, r); err == nil {
			s.serve(c)
		}
	}
}

func (s *faultyServer) serve(c *fakeservice.Conn) {
	c.Queue(`{"type":"welcome","user":null,"heartbeat_ms":25000,"max_frame":65536}`)
	c.Serve(func(f fakeservice.Frame) bool { return s.handle(c, f) })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, room := range s.rooms {
		delete(room.members, c)
	}
}

// handle answers a frame. It returns false to cut the connection.
func (s *faultyServer) handle(c *fakeservice.Conn, f fakeservice.Frame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.rooms[f.Room]
	if room == nil {
		room = &serverRoom{epoch: "e1", ids: map[string]int{}, members: map[*fakeservice.Conn]bool{}}
		s.rooms[f.Room] = room
	}
	switch f.Type {
	case "join":
		if s.fault == "rejects readers" && len(room.log) > 0 {
			c.Queue(f.Error("forbidden", ""))
			return true
		}
		s.join(c, room, f)
	case "publish":
		return s.publish(c, room, f)
	}
	return true
}

func (s *faultyServer) join(c *fakeservice.Conn, room *serverRoom, f fakeservice.Frame) {
	c.Queue(f.Joined(room.epoch, len(room.log)))
	after := int(*f.After)
	if f.Epoch != "" && f.Epoch != room.epoch && after > 0 && s.fault != "a new epoch without a gap" {
		c.Queue(fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, f.Room, room.epoch, len(room.log)))
		after = len(room.log)
	}
	if s.fault == "a resume that skips" && after > 0 {
		after++
	}
	for seq := after + 1; seq <= len(room.log); seq++ {
		c.Queue(room.frame(room.log[seq-1], seq))
	}
	room.members[c] = true
}

func (r *serverRoom) frame(f fakeservice.Frame, seq int) string {
	return f.Message(r.epoch, seq, "null")
}

// publish stores, delivers and acks a message, except for the fault. Every
// sixtieth answer is a cut, and every eleventh publish gets the fault.
func (s *faultyServer) publish(c *fakeservice.Conn, room *serverRoom, f fakeservice.Frame) bool {
	s.answers++
	switch {
	case s.fault == "refuses all":
		c.Queue(f.Error("forbidden", ""))
		return true
	case s.fault == "answers nothing":
		return true
	case s.fault == "rejects a client" && s.answers == 10:
		go func() { _ = c.WS.Close(4003, "you") }() // in the background, because it waits for an answer
		return true
	}
	inject := s.answers%11 == 10
	if seq, stored := room.ids[f.ID]; stored && s.fault != "no ids" {
		c.Queue(f.Ack(room.epoch, seq, false))
		return true
	}
	if inject && s.fault == "acks before the commit, which fails" {
		c.Queue(f.Ack(room.epoch, len(room.log)+1, false))
		return true
	}
	if inject && s.fault == "delivers before the commit, which fails" {
		for member := range room.members {
			member.Queue(room.frame(f, len(room.log)+1))
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
	c.Queue(f.Ack(room.epoch, seq, false))
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
			member.Queue(fmt.Sprintf(`{"type":"gap","room":%q,"epoch":%q,"from":1,"to":%d,"reason":"epoch"}`, name, room.epoch, len(room.log)))
		}
	}
}

// deliver sends the last message to all members, except for the fault.
func (s *faultyServer) deliver(publisher *fakeservice.Conn, room *serverRoom, f fakeservice.Frame, inject bool) {
	frame := room.frame(f, len(room.log))
	for member := range room.members {
		if inject && s.fault == "no repair" && member != publisher {
			continue
		}
		if inject && s.fault == "other data" {
			f.Data = json.RawMessage(`"something else"`)
			frame = room.frame(f, len(room.log))
		}
		member.Queue(frame)
		if inject && s.fault == "duplicates" {
			member.Queue(frame)
		}
	}
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
