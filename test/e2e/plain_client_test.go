package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// A plainClient is as simple as a client can be: it ignores the service's request to
// move and keeps no positions. It offers its session, and the service puts it back
// into its rooms.
type plainClient struct {
	t          *testing.T
	address    string
	rooms      []string
	session    string
	closeCodes []websocket.StatusCode

	mu   sync.Mutex
	seqs map[string][]int64 // by room, in the order received
}

// run connects and reads, and reconnects when it is closed, until ctx ends.
func (p *plainClient) run(ctx context.Context) {
	first := true
	for ctx.Err() == nil {
		offer := []string{"switchyard.v1"}
		if p.session != "" {
			offer = append(offer, "session."+p.session)
		}
		ws, _, err := websocket.Dial(ctx, "ws://"+p.address+"/ws?rooms=1", &websocket.DialOptions{Subprotocols: offer})
		if err != nil {
			select { // the old node refuses already, and the name does not yet lead to the new one
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if first {
			for _, room := range p.rooms {
				_ = ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"type":"join","room":%q}`, room))
			}
			first = false
		}
		p.read(ctx, ws)
		_ = ws.CloseNow()
	}
}

func (p *plainClient) read(ctx context.Context, ws *websocket.Conn) {
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			if code := websocket.CloseStatus(err); code != -1 {
				p.closeCodes = append(p.closeCodes, code)
			} else if !errors.Is(err, context.Canceled) && ctx.Err() == nil {
				p.t.Errorf("the connection broke: %v", err)
			}
			return
		}
		var f struct {
			Type, Room, Session string
			Resumed             bool
			Seq                 int64
		}
		if err := json.Unmarshal(b, &f); err != nil {
			p.t.Errorf("%s: %v", b, err)
		}
		switch f.Type {
		case "welcome":
			if p.session != "" && (!f.Resumed || f.Session != p.session) {
				p.t.Errorf("its session was not resumed: %s", b)
			}
			p.session = f.Session
		case "message":
			p.mu.Lock()
			p.seqs[f.Room] = append(p.seqs[f.Room], f.Seq)
			p.mu.Unlock()
		case "gap":
			p.t.Errorf("received a gap: %s", b)
		}
	}
}

// hasReceived reports whether the client has received a room's message.
func (p *plainClient) hasReceived(room string, seq int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seqs[room] {
		if s == seq {
			return true
		}
	}
	return false
}

// Plain clients are closed at the deadline of a drain, reconnect to the other node
// with nothing but their session, and miss no message. Some messages may come twice,
// with the same seq.
func TestPlainClientsMissNothing(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(), "API_KEYS": apiKey,
		"DRAIN_WINDOW": "1s", "DRAIN_TIMEOUT": "1s", "HEARTBEAT": "2s",
	}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	address := testkit.NewProxy(t, a.Addr)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	clients := make([]*plainClient, 20)
	rooms := []string{"news", "sport", "weather"}
	for i := range clients {
		clients[i] = &plainClient{t: t, address: address.Addr(), rooms: rooms, seqs: map[string][]int64{}}
		running.Go(func() { clients[i].run(ctx) })
	}
	heads := map[string]int64{}
	publishAll := func(s *testkit.Server) {
		for _, room := range rooms {
			heads[room] = publishOne(t, s, room)
		}
	}
	waitAllReceived := func(what string) {
		testkit.Eventually(t, what, func() bool {
			for _, p := range clients {
				for room, head := range heads {
					if !p.hasReceived(room, head) {
						return false
					}
				}
			}
			return true
		})
	}
	pollPage(t, "all clients in the rooms", func() bool {
		return strings.Count(testkit.Get(t, "http://"+a.Admin+"/debug/rooms"), fmt.Sprintf(`"members":%d`, len(clients))) == len(rooms)
	})
	for range 20 {
		publishAll(a)
	}
	waitAllReceived("the first messages")
	savesBefore := metric(t, a, "session_saves_total{result=\"done\"}")
	pollPage(t, "the positions to be saved", func() bool {
		return metric(t, a, "session_saves_total{result=\"done\"}") >= savesBefore+float64(2*len(clients))
	})
	address.Retarget(b.Addr)
	gone := make(chan error, 1)
	go func() { gone <- a.Stop() }()
	for done := false; !done; { // messages come from the other node all the while
		publishAll(b)
		select {
		case err := <-gone:
			if err != nil {
				t.Errorf("exit: %v", err)
			}
			done = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	publishAll(b)
	waitAllReceived("all messages of the drain")
	cancel()
	running.Wait()
	for i, p := range clients {
		if len(p.closeCodes) == 0 || p.closeCodes[0] != websocket.StatusServiceRestart {
			t.Errorf("client %d was closed with %v, want 1012", i, p.closeCodes)
		}
		for room, seqs := range p.seqs {
			if problem := seqProblem(seqs, heads[room], len(p.closeCodes)); problem != "" {
				t.Errorf("client %d in %s: %s", i, room, problem)
			}
		}
	}
}

// seqProblem says what is wrong with the seqs of a room as they were received: they
// go from 1 to head in order, and may step back once for each connection that ended.
func seqProblem(seqs []int64, head int64, ended int) string {
	next, again := int64(1), 0
	for _, s := range seqs {
		if s > next {
			return fmt.Sprintf("%d after %d: %d is missing", s, next-1, next)
		}
		if s < next {
			again++
		}
		next = s + 1
	}
	if again > ended {
		return fmt.Sprintf("stepped back %d times with %d connections that ended", again, ended)
	}
	if next != head+1 {
		return fmt.Sprintf("ends with %d of %d", next-1, head)
	}
	return ""
}

// publishOne publishes over HTTP and returns the seq.
func publishOne(t *testing.T, s *testkit.Server, room string) int64 {
	t.Helper()
	res, body := post(t, s, "/v1/rooms/"+room+"/messages", `{"data":1}`)
	var answer struct{ Seq int64 }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Seq == 0 {
		t.Fatalf("publish: %s %s %v", res.Status, body, err)
	}
	return answer.Seq
}
