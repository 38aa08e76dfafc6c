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
	"switchyard/test/behaviors"
)

// The list that clients in every language are held to. test/node and
// test/browser tell the same of client.js.
func TestBehaviors(t *testing.T) {
	all, err := behaviors.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		t.Run(b.Name, func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) { newScriptPlayer(t, s, b).play() })
		})
	}
}

// A scriptPlayer is where a behaviour is played.
type scriptPlayer struct {
	t       *testing.T
	service *fakeService
	script  behaviors.Behavior
	client  *Client
	peers   []*scriptedPeer           // in the order of connecting
	frames  map[string]map[string]any // that the client sent, by the script's names

	mu            sync.Mutex // Protects following.
	state         StateEvent
	states        []string
	events        []string
	outcomes      map[string]*outcome
	tokenRequests int // for tokens
}

type outcome struct {
	done     bool
	ack      Ack
	history  History
	presence Presence
	err      error
}

// scriptedPeer is a peer whose frames are read as they come.
type scriptedPeer struct {
	*peer
	token, session string

	mu    sync.Mutex // Protects following.
	queue []map[string]any
	code  int // with which the client hung up; 0 while it has not
}

func (p *scriptedPeer) readLoop() {
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

func newScriptPlayer(t *testing.T, s *fakeService, b behaviors.Behavior) *scriptPlayer {
	st := &scriptPlayer{t: t, service: s, script: b, frames: map[string]map[string]any{}, outcomes: map[string]*outcome{}}
	opts := Options{IDWindow: duration(2 * float64(b.ResendFor)), random: func() float64 { return b.Random }, OnState: func(e StateEvent) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.state = e
		st.states = append(st.states, e.State.String())
	}, OnMoved: func(e MovedEvent) {
		st.recordEvent("moved %s %s %s", e.From.Node, e.To.Node, e.Reason)
		st.mu.Lock()
		defer st.mu.Unlock()
		st.state.Welcome = e.To
	}}
	if b.Tokens != nil {
		opts.Token = st.nextToken
	}
	st.client = s.newClient(opts)
	return st
}

func (st *scriptPlayer) nextToken(ctx context.Context) (string, error) {
	st.mu.Lock()
	st.tokenRequests++
	count := st.tokenRequests
	st.mu.Unlock()
	if count > len(st.script.Tokens) || st.script.Tokens[count-1] == nil {
		return "", errors.New("no token to be had")
	}
	token := *st.script.Tokens[count-1]
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

// peerFor is the connection that a step is about.
func (st *scriptPlayer) peerFor(s behaviors.Step) *scriptedPeer {
	if s.On > 0 {
		return st.peers[s.On-1]
	}
	return st.peers[len(st.peers)-1]
}

func (st *scriptPlayer) play() {
	st.expectConnection(0)
	if st.script.Begin != "silent" {
		st.sendWelcome(st.peers[0], nil)
	}
	for i, step := range st.script.Steps {
		synctest.Wait()
		if err := st.runStep(step); err != nil {
			line, _ := json.Marshal(step)
			st.t.Fatalf("step %d: %v\n%s", i+1, err, line)
		}
	}
}

func (st *scriptPlayer) runStep(s behaviors.Step) error {
	switch {
	case s.Time == "passes":
		time.Sleep(duration(s.MS)) // of the bubble
		return nil
	case s.Server != "":
		return st.serverStep(s)
	case s.User != "":
		return st.userStep(s)
	}
	return st.clientStep(s)
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func (st *scriptPlayer) serverStep(s behaviors.Step) error {
	p := st.peerFor(s)
	switch s.Server {
	case "welcomes":
		st.sendWelcome(p, s.Welcome)
	case "says":
		if s.Text != "" {
			p.send("%s", s.Text)
			return nil
		}
		p.sendJSON(st.answerFrame(s))
	case "tells":
		for _, seq := range s.Seqs {
			p.sendJSON(map[string]any{
				"type": "message", "room": s.Room, "epoch": s.Epoch, "seq": seq, "id": fmt.Sprintf("id%d", seq),
				"from": nil, "at": "2026-01-02T15:04:05.000000Z", "data": seq,
			})
		}
	case "closes":
		code := s.CloseCode()
		if code == codeAbnormal {
			code = 0
		}
		p.closeWith(code)
	case "was given":
		if p.token != s.Token || p.session != s.Session {
			return fmt.Errorf("it was given %q and %q", p.token, p.session)
		}
	default:
		return fmt.Errorf("what is %q?", s.Server)
	}
	return nil
}

// answerFrame adds what an answer repeats of its request.
func (st *scriptPlayer) answerFrame(s behaviors.Step) map[string]any {
	frame := maps.Clone(s.Frame)
	for _, field := range []string{"ref", "room", "id"} {
		if value := st.frames[s.Answers][field]; value != nil {
			frame[field] = value
		}
	}
	return frame
}

func (p *scriptedPeer) sendJSON(frame map[string]any) {
	b, err := json.Marshal(frame)
	if err != nil {
		p.t.Fatal(err)
	}
	p.send("%s", b)
}

func (st *scriptPlayer) sendWelcome(p *scriptedPeer, more map[string]any) {
	frame := map[string]any{
		"type": "welcome", "session": "s", "resumed": false, "user": nil, "node": "n1", "color": "blue",
		"deployment": "d1", "version": "1", "heartbeat_ms": 25_000, "max_frame": 65_536,
	}
	maps.Copy(frame, st.script.Welcome)
	maps.Copy(frame, more)
	p.sendJSON(frame)
	synctest.Wait()
}

func (st *scriptPlayer) userStep(s behaviors.Step) error {
	c, room := st.client, message.Room(s.Room)
	switch s.User {
	case "joins":
		from := Now()
		if s.After != nil {
			from = After(message.Epoch(s.Epoch), message.Seq(*s.After))
		}
		go func() {
			_, err := c.Join(context.Background(), room, from, st.handler(s.Room))
			st.recordRefusal(s.Room, err)
		}()
	case "leaves":
		c.Leave(room)
	case "publishes":
		return st.publish(s)
	case "asks":
		r := HistoryRange{Limit: s.Limit, Forward: s.After != nil}
		if s.Before != nil {
			r.Before = message.Seq(*s.Before)
		}
		st.setOutcome(s.As, outcome{})
		go func() {
			h, err := c.History(context.Background(), room, r)
			st.setOutcome(s.As, outcome{done: true, history: h, err: err})
		}()
	case "looks":
		st.setOutcome(s.As, outcome{})
		go func() {
			p, err := c.Presence(context.Background(), room)
			st.setOutcome(s.As, outcome{done: true, presence: p, err: err})
		}()
	case "refreshes":
		st.setOutcome(s.As, outcome{})
		go func() { st.setOutcome(s.As, outcome{done: true, err: c.RefreshToken(context.Background())}) }()
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

func (st *scriptPlayer) publish(s behaviors.Step) error {
	var data bytes.Buffer // as a service of the script's would echo it: compact
	if s.Size > 0 {
		data.WriteString(`"` + strings.Repeat("x", s.Size) + `"`)
	} else if err := json.Compact(&data, s.Data); err != nil {
		return err
	}
	st.setOutcome(s.As, outcome{})
	err := st.client.Send(message.Room(s.Room), data.Bytes(), s.ID, func(ack Ack, err error) {
		st.setOutcome(s.As, outcome{done: true, ack: ack, err: err})
	})
	if err != nil {
		st.setOutcome(s.As, outcome{done: true, err: err})
	}
	return nil
}

func (st *scriptPlayer) setOutcome(name string, o outcome) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.outcomes[name] = &o
}

func (st *scriptPlayer) recordEvent(format string, args ...any) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.events = append(st.events, fmt.Sprintf(format, args...))
}

func (st *scriptPlayer) recordRefusal(room string, err error) {
	if refusal := new(Error); errors.As(err, &refusal) {
		st.recordEvent("refused %s %s", room, refusal.Code)
	}
}

func (st *scriptPlayer) handler(room string) Handler {
	return Handler{
		Message: func(m message.Message) { st.recordEvent("message %s %s/%d", m.Room, m.Epoch, m.Seq) },
		Gap:     func(g Gap) { st.recordEvent("gap %s %s %d-%d %s", g.Room, g.Epoch, g.From, g.To, g.Reason) },
		Joined:  func(j Joined) { st.recordEvent("joined %s %d", j.Room, j.Head) },
		Ended:   func(err error) { st.recordRefusal(room, err) },
		Presence: func(p Presence) {
			st.recordEvent("presence %s %d%s%s%s", p.Room, p.Count, sessions(" =", p.Members), sessions(" +", p.Joined), sessions(" -", p.Left))
		},
		Signal: func(s Signal) {
			if s.From == "" {
				s.From = "-"
			}
			st.recordEvent("signal %s %s %s", s.Room, s.From, s.Data)
		},
	}
}

func sessions(before string, members []Member) (list string) {
	for _, m := range members {
		list += before + m.Session
	}
	return list
}
