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

// The Go client does what every client does. test/node and test/browser hold
// client.js to the same list.
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

// A scriptPlayer runs the script of one behavior with a client and a scripted
// service.
type scriptPlayer struct {
	t       *testing.T
	service *fakeService
	script  behaviors.Behavior
	client  *Client
	peers   []*scriptedPeer           // in the order of connecting
	frames  map[string]map[string]any // frames of the client, by the names in the script
	joins   map[string]*Room          // by the names in the script

	// mu protects the fields below.
	mu            sync.Mutex
	state         StateEvent
	states        []string
	events        []string
	outcomes      map[string]*outcome
	tokenRequests int // calls of nextToken
}

// An outcome is the result of a call of the user.
type outcome struct {
	done     bool
	ack      Ack
	history  History
	presence Presence
	err      error
}

// A scriptedPeer is a peer with a goroutine that reads the client's frames.
type scriptedPeer struct {
	*peer
	token, session string

	// mu protects the fields below.
	mu    sync.Mutex
	queue []map[string]any
	code  int // with which the client closed; 0 while it has not
}

func (p *scriptedPeer) readLoop() {
	for {
		_, b, err := p.WS.Read(context.Background())
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
	sp := &scriptPlayer{t: t, service: s, script: b, frames: map[string]map[string]any{}, joins: map[string]*Room{}, outcomes: map[string]*outcome{}}
	opts := Options{IDWindow: duration(2 * float64(b.ResendFor)), random: func() float64 { return b.Random }, OnState: func(e StateEvent) {
		sp.mu.Lock()
		defer sp.mu.Unlock()
		sp.state = e
		sp.states = append(sp.states, e.State.String())
	}, OnMoved: func(e MovedEvent) {
		sp.recordEvent("moved %s %s %s", e.From.Node, e.To.Node, e.Reason)
		sp.mu.Lock()
		defer sp.mu.Unlock()
		sp.state.Welcome = e.To
	}}
	if b.Tokens != nil {
		opts.Token = sp.nextToken
	}
	sp.client = s.newClient(opts)
	return sp
}

func (sp *scriptPlayer) nextToken(ctx context.Context) (string, error) {
	sp.mu.Lock()
	sp.tokenRequests++
	count := sp.tokenRequests
	sp.mu.Unlock()
	if count > len(sp.script.Tokens) || sp.script.Tokens[count-1] == nil {
		return "", errors.New("no token available")
	}
	token := *sp.script.Tokens[count-1]
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

// peerFor returns the connection that a step is about.
func (sp *scriptPlayer) peerFor(s behaviors.Step) *scriptedPeer {
	if s.On > 0 {
		return sp.peers[s.On-1]
	}
	return sp.peers[len(sp.peers)-1]
}

func (sp *scriptPlayer) play() {
	sp.expectConnection(0)
	if sp.script.Begin != "not welcomed" {
		sp.sendWelcome(sp.peers[0], nil)
	}
	for i, step := range sp.script.Steps {
		synctest.Wait()
		if err := sp.runStep(step); err != nil {
			line, _ := json.Marshal(step)
			sp.t.Fatalf("step %d: %v\n%s", i+1, err, line)
		}
	}
}

func (sp *scriptPlayer) runStep(s behaviors.Step) error {
	switch {
	case s.Time == "passes":
		time.Sleep(duration(s.MS)) // of the bubble
		return nil
	case s.Server != "":
		return sp.serverStep(s)
	case s.User != "":
		return sp.userStep(s)
	}
	return sp.clientStep(s)
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func (sp *scriptPlayer) serverStep(s behaviors.Step) error {
	p := sp.peerFor(s)
	switch s.Server {
	case "welcomes":
		sp.sendWelcome(p, s.Welcome)
	case "sends":
		if s.Text != "" {
			p.send("%s", s.Text)
			return nil
		}
		p.sendJSON(sp.answerFrame(s))
	case "sends messages":
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
	case "received credentials":
		if p.token != s.Token || p.session != s.Session {
			return fmt.Errorf("it received token %q and session %q", p.token, p.session)
		}
	default:
		return fmt.Errorf("unknown word of the server: %q", s.Server)
	}
	return nil
}

// answerFrame returns the step's frame with the ref, room and id of the request
// that it answers.
func (sp *scriptPlayer) answerFrame(s behaviors.Step) map[string]any {
	frame := maps.Clone(s.Frame)
	for _, field := range []string{"ref", "room", "id"} {
		if value := sp.frames[s.Answers][field]; value != nil {
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

func (sp *scriptPlayer) sendWelcome(p *scriptedPeer, more map[string]any) {
	frame := map[string]any{
		"type": "welcome", "session": "s", "resumed": false, "user": nil, "node": "n1", "color": "blue",
		"deployment": "d1", "version": "1", "heartbeat_ms": 25_000, "max_frame": 65_536,
	}
	maps.Copy(frame, sp.script.Welcome)
	maps.Copy(frame, more)
	p.sendJSON(frame)
	synctest.Wait()
}

func (sp *scriptPlayer) userStep(s behaviors.Step) error {
	c, room := sp.client, message.Room(s.Room)
	switch s.User {
	case "joins":
		go sp.join(s)
	case "leaves":
		if s.Of != "" {
			sp.joins[s.Of].Leave()
			return nil
		}
		c.Leave(room)
	case "reconnects":
		c.Reconnect()
	case "publishes":
		return sp.publish(s)
	case "requests history":
		r := HistoryRange{Limit: s.Limit, Forward: s.After != nil}
		if s.Before != nil {
			r.Before = message.Seq(*s.Before)
		}
		sp.setOutcome(s.As, outcome{})
		go func() {
			h, err := c.History(context.Background(), room, r)
			sp.setOutcome(s.As, outcome{done: true, history: h, err: err})
		}()
	case "requests presence":
		sp.setOutcome(s.As, outcome{})
		go func() {
			p, err := c.Presence(context.Background(), room)
			sp.setOutcome(s.As, outcome{done: true, presence: p, err: err})
		}()
	case "refreshes the token":
		sp.setOutcome(s.As, outcome{})
		go func() { sp.setOutcome(s.As, outcome{done: true, err: c.RefreshToken(context.Background())}) }()
	case "signals":
		if err := c.Signal(room, s.Data); (err == nil) != s.Taken {
			return fmt.Errorf("Signal = %w", err)
		}
	case "closes":
		go c.Close()
	default:
		return fmt.Errorf("unknown word of the user: %q", s.User)
	}
	return nil
}

// join joins as a step says. The events of a join with a name begin with the name.
func (sp *scriptPlayer) join(s behaviors.Step) {
	from := Last(s.Last)
	if s.After != nil {
		from = After(message.Epoch(s.Epoch), message.Seq(*s.After))
	}
	var err error
	if s.As == "" {
		_, err = sp.client.Join(context.Background(), message.Room(s.Room), from, sp.handler("", s.Room))
	} else {
		var joined *Room
		joined, err = sp.client.JoinRoom(context.Background(), message.Room(s.Room), from, sp.handler(s.As+": ", s.Room))
		sp.mu.Lock()
		sp.joins[s.As] = joined
		sp.mu.Unlock()
	}
	sp.recordRefusal(s.Room, err)
}

func (sp *scriptPlayer) publish(s behaviors.Step) error {
	var data bytes.Buffer // compact, as the frames of the script echo it
	if s.Size > 0 {
		data.WriteString(`"` + strings.Repeat("x", s.Size) + `"`)
	} else if err := json.Compact(&data, s.Data); err != nil {
		return err
	}
	sp.setOutcome(s.As, outcome{})
	err := sp.client.Send(message.Room(s.Room), data.Bytes(), s.ID, func(ack Ack, err error) {
		sp.setOutcome(s.As, outcome{done: true, ack: ack, err: err})
	})
	if err != nil {
		sp.setOutcome(s.As, outcome{done: true, err: err})
	}
	return nil
}

func (sp *scriptPlayer) setOutcome(name string, o outcome) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.outcomes[name] = &o
}

func (sp *scriptPlayer) recordEvent(format string, args ...any) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.events = append(sp.events, fmt.Sprintf(format, args...))
}

func (sp *scriptPlayer) recordRefusal(room string, err error) {
	if refusal := new(Error); errors.As(err, &refusal) {
		sp.recordEvent("refused %s %s", room, refusal.Code)
	}
}

func (sp *scriptPlayer) handler(prefix, room string) Handler {
	return Handler{
		Message: func(m message.Message) { sp.recordEvent("%smessage %s %s/%d", prefix, m.Room, m.Epoch, m.Seq) },
		Gap:     func(g Gap) { sp.recordEvent("%sgap %s %s %d-%d %s", prefix, g.Room, g.Epoch, g.From, g.To, g.Reason) },
		Joined:  func(j Joined) { sp.recordEvent("%sjoined %s %d", prefix, j.Room, j.Head) },
		Ended:   func(err error) { sp.recordRefusal(room, err) },
		Presence: func(p Presence) {
			sp.recordEvent("%spresence %s %d%s%s%s", prefix, p.Room, p.Count, sessions(" =", p.Members), sessions(" +", p.Joined), sessions(" -", p.Left))
		},
		Signal: func(s Signal) {
			if s.From == "" {
				s.From = "-"
			}
			sp.recordEvent("%ssignal %s %s %s", prefix, s.Room, s.From, s.Data)
		},
	}
}

func sessions(before string, members []Member) (list string) {
	for _, m := range members {
		list += before + m.Session
	}
	return list
}
