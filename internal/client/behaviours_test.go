package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/test/behaviours"
)

// The list that clients in every language are held to. test/node and
// test/browser tell the same of client.js.
func TestBehaviours(t *testing.T) {
	all, err := behaviours.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		t.Run(b.Name, func(t *testing.T) {
			story(t, func(t *testing.T, s *service) { newStage(t, s, b).play() })
		})
	}
}

// A stage is where a behaviour is played.
type stage struct {
	t       *testing.T
	service *service
	script  behaviours.Behaviour
	client  *Client
	peers   []*scripted               // in the order of connecting
	frames  map[string]map[string]any // that the client sent, by the script's names

	mu       sync.Mutex // Protects following.
	state    StateEvent
	states   []string
	told     []string
	outcomes map[string]*outcome
	asked    int // for tokens
}

type outcome struct {
	done     bool
	ack      Ack
	history  History
	presence Presence
	err      error
}

// scripted is a peer whose frames are read as they come.
type scripted struct {
	*peer
	token, session string

	mu    sync.Mutex // Protects following.
	queue []map[string]any
	code  int // with which the client hung up; 0 while it has not
}

func (p *scripted) readLoop() {
	for {
		_, b, err := p.conn.Read(context.Background())
		p.mu.Lock()
		if err != nil {
			p.code = closeCode(err)
			p.mu.Unlock()
			return
		}
		var frame map[string]any
		if json.Unmarshal(b, &frame) != nil {
			frame = map[string]any{"type": "not JSON: " + string(b)}
		}
		p.queue = append(p.queue, frame)
		p.mu.Unlock()
	}
}

func newStage(t *testing.T, s *service, b behaviours.Behaviour) *stage {
	st := &stage{t: t, service: s, script: b, frames: map[string]map[string]any{}, outcomes: map[string]*outcome{}}
	opts := Options{IDWindow: duration(2 * float64(b.ResendFor)), random: func() float64 { return b.Random }, OnState: func(e StateEvent) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.state = e
		st.states = append(st.states, e.State.String())
	}, OnMoved: func(e MovedEvent) {
		st.tell("moved %s %s %s", e.From.Node, e.To.Node, e.Reason)
		st.mu.Lock()
		defer st.mu.Unlock()
		st.state.Welcome = e.To
	}}
	if b.Tokens != nil {
		opts.Token = st.nextToken
	}
	st.client = s.open(opts)
	return st
}

func (st *stage) nextToken(ctx context.Context) (string, error) {
	st.mu.Lock()
	st.asked++
	asked := st.asked
	st.mu.Unlock()
	if asked > len(st.script.Tokens) || st.script.Tokens[asked-1] == nil {
		return "", errors.New("no token to be had")
	}
	token := *st.script.Tokens[asked-1]
	late, isLate := strings.CutPrefix(token, "late ")
	wait := time.Duration(0)
	switch {
	case isLate:
		wait = time.Second
	case token == "never":
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
		return late, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// on is the connection that a step is about.
func (st *stage) on(s behaviours.Step) *scripted {
	if s.On > 0 {
		return st.peers[s.On-1]
	}
	return st.peers[len(st.peers)-1]
}

func (st *stage) play() {
	st.connects(0)
	if st.script.Begin != "silent" {
		st.welcomes(st.peers[0], nil)
	}
	for i, step := range st.script.Steps {
		synctest.Wait()
		if err := st.take(step); err != nil {
			line, _ := json.Marshal(step)
			st.t.Fatalf("step %d: %v\n%s", i+1, err, line)
		}
	}
}

func (st *stage) take(s behaviours.Step) error {
	switch {
	case s.Time == "passes":
		time.Sleep(duration(s.MS)) // of the bubble
		return nil
	case s.Server != "":
		return st.server(s)
	case s.User != "":
		return st.user(s)
	}
	return st.expect(s)
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func (st *stage) server(s behaviours.Step) error {
	p := st.on(s)
	switch s.Server {
	case "welcomes":
		st.welcomes(p, s.Welcome)
	case "says":
		if s.Text != "" {
			p.send("%s", s.Text)
			return nil
		}
		p.say(st.answering(s))
	case "tells":
		for _, seq := range s.Seqs {
			p.say(map[string]any{
				"type": "message", "room": s.Room, "epoch": s.Epoch, "seq": seq, "id": fmt.Sprintf("id%d", seq),
				"from": nil, "at": "2026-01-02T15:04:05.000000Z", "data": seq,
			})
		}
	case "closes":
		code := s.CloseCode()
		if code == codeAbnormal {
			code = 0
		}
		p.end(code)
	case "was given":
		if p.token != s.Token || p.session != s.Session {
			return fmt.Errorf("it was given %q and %q", p.token, p.session)
		}
	default:
		return fmt.Errorf("what is %q?", s.Server)
	}
	return nil
}

// answering adds what an answer repeats of its request.
func (st *stage) answering(s behaviours.Step) map[string]any {
	frame := maps.Clone(s.Frame)
	for _, field := range []string{"ref", "room", "id"} {
		if value := st.frames[s.Answers][field]; value != nil {
			frame[field] = value
		}
	}
	return frame
}

func (p *scripted) say(frame map[string]any) {
	b, err := json.Marshal(frame)
	if err != nil {
		p.t.Fatal(err)
	}
	p.send("%s", b)
}

func (st *stage) welcomes(p *scripted, more map[string]any) {
	frame := map[string]any{
		"type": "welcome", "session": "s", "resumed": false, "user": nil, "node": "n1", "color": "blue",
		"deployment": "d1", "version": "1", "heartbeat_ms": 25_000, "max_frame": 65_536,
	}
	maps.Copy(frame, st.script.Welcome)
	maps.Copy(frame, more)
	p.say(frame)
	synctest.Wait()
}

func (st *stage) user(s behaviours.Step) error {
	c, room := st.client, message.Room(s.Room)
	switch s.User {
	case "joins":
		from := Now()
		if s.After != nil {
			from = After(message.Epoch(s.Epoch), message.Seq(*s.After))
		}
		go func() {
			_, err := c.Join(context.Background(), room, from, st.handler(s.Room))
			st.refused(s.Room, err)
		}()
	case "leaves":
		c.Leave(room)
	case "publishes":
		return st.publishes(s)
	case "asks":
		r := HistoryRange{Limit: s.Limit, Forward: s.After != nil}
		if s.Before != nil {
			r.Before = message.Seq(*s.Before)
		}
		st.settle(s.As, outcome{})
		go func() {
			h, err := c.History(context.Background(), room, r)
			st.settle(s.As, outcome{done: true, history: h, err: err})
		}()
	case "looks":
		st.settle(s.As, outcome{})
		go func() {
			p, err := c.Presence(context.Background(), room)
			st.settle(s.As, outcome{done: true, presence: p, err: err})
		}()
	case "refreshes":
		st.settle(s.As, outcome{})
		go func() { st.settle(s.As, outcome{done: true, err: c.RefreshToken(context.Background())}) }()
	case "signals":
		if err := c.Signal(room, s.Data); (err == nil) != s.Taken {
			return fmt.Errorf("Signal = %w", err)
		}
	case "closes":
		go c.Close()
	default:
		return fmt.Errorf("what is %q?", s.User)
	}
	return nil
}

func (st *stage) publishes(s behaviours.Step) error {
	var data bytes.Buffer // as a service of the script's would echo it: compact
	if s.Size > 0 {
		data.WriteString(`"` + strings.Repeat("x", s.Size) + `"`)
	} else if err := json.Compact(&data, s.Data); err != nil {
		return err
	}
	st.settle(s.As, outcome{})
	err := st.client.Send(message.Room(s.Room), data.Bytes(), s.ID, func(ack Ack, err error) {
		st.settle(s.As, outcome{done: true, ack: ack, err: err})
	})
	if err != nil {
		st.settle(s.As, outcome{done: true, err: err})
	}
	return nil
}

func (st *stage) settle(name string, o outcome) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.outcomes[name] = &o
}

func (st *stage) tell(format string, args ...any) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.told = append(st.told, fmt.Sprintf(format, args...))
}

func (st *stage) refused(room string, err error) {
	if refusal := new(Error); errors.As(err, &refusal) {
		st.tell("refused %s %s", room, refusal.Code)
	}
}

func (st *stage) handler(room string) Handler {
	return Handler{
		Message: func(m message.Message) { st.tell("message %s %s/%d", m.Room, m.Epoch, m.Seq) },
		Gap:     func(g Gap) { st.tell("gap %s %s %d-%d %s", g.Room, g.Epoch, g.From, g.To, g.Reason) },
		Joined:  func(j Joined) { st.tell("joined %s %d", j.Room, j.Head) },
		Ended:   func(err error) { st.refused(room, err) },
		Presence: func(p Presence) {
			st.tell("presence %s %d%s%s%s", p.Room, p.Count, sessions(" =", p.Members), sessions(" +", p.Joined), sessions(" -", p.Left))
		},
		Signal: func(s Signal) {
			if s.From == "" {
				s.From = "-"
			}
			st.tell("signal %s %s %s", s.Room, s.From, s.Data)
		},
	}
}

func sessions(before string, members []Member) (list string) {
	for _, m := range members {
		list += before + m.Session
	}
	return list
}
