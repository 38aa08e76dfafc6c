package release

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A roomClient is a member of one room, with the Go client of this release. It is safe
// for concurrent use.
type roomClient struct {
	t      *testing.T
	room   message.Room
	client *client.Client

	mu       sync.Mutex
	received []message.Message
	signals  []string
	gaps     int
}

// joinRoom connects a client that joins a room from its start. The client goes on to
// the next of the servers when one fails.
func joinRoom(t *testing.T, room message.Room, servers ...*testkit.Server) *roomClient {
	t.Helper()
	g := &roomClient{t: t, room: room}
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.SocketURL())
	}
	ctx := testkit.Within(t, testkit.Timeout)
	c, err := client.Dial(ctx, client.Options{URLs: urls})
	if err != nil {
		t.Fatal(err)
	}
	g.client = c
	t.Cleanup(c.Close)
	_, err = c.Join(ctx, room, client.Start(), client.Handler{Message: g.onMessage, Signal: g.onSignal, Gap: g.onGap})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *roomClient) onMessage(m message.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.received = append(g.received, m)
}

func (g *roomClient) onSignal(s client.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.signals = append(g.signals, string(s.Data))
}

func (g *roomClient) onGap(client.Gap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gaps++
}

func (g *roomClient) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.received)
}

func (g *roomClient) hasSignal(signal string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.signals {
		if s == signal {
			return true
		}
	}
	return false
}

// publish publishes a message whose data is its id, and records the ack.
func (g *roomClient) publish(l *ackLog, id string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), testkit.Timeout)
	defer cancel()
	ack, err := g.client.Publish(ctx, g.room, json.RawMessage(`"`+id+`"`), id)
	if err != nil {
		g.t.Errorf("publish %s: %v", id, err)
		return
	}
	l.record(id, ack.Seq)
}

// An ackLog has the acks of one room's publishers. It is safe for concurrent use.
type ackLog struct {
	mu  sync.Mutex
	ids map[message.Seq]string
}

func (l *ackLog) record(id string, seq message.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[message.Seq]string{}
	}
	l.ids[seq] = id
}

func (l *ackLog) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

// check waits until a client has received all acked messages, and checks that they
// came once, in order, unchanged, and with the seqs of their acks.
func (l *ackLog) check(name string, g *roomClient) {
	g.t.Helper()
	testkit.Eventually(g.t, "all messages at "+name, func() bool { return g.count() >= l.size() })
	g.client.Close() // a delivery after this would be a duplicate
	if why := l.problem(g.received, g.gaps); why != "" {
		g.t.Errorf("%s: %s", name, why)
	}
}

// problem says what is wrong with the messages that a client received, "" for nothing.
func (l *ackLog) problem(got []message.Message, gaps int) string {
	if gaps > 0 {
		return fmt.Sprintf("%d gaps were declared, and no message was removed", gaps)
	}
	for i, m := range got {
		switch want := message.Seq(i + 1); {
		case m.Seq != want:
			return fmt.Sprintf("message %d has seq %d: lost, duplicated or out of order", want, m.Seq)
		case l.ids[m.Seq] != m.ID:
			return fmt.Sprintf("seq %d is %s, and the ack of that seq was for %s", m.Seq, m.ID, l.ids[m.Seq])
		case string(m.Data) != `"`+m.ID+`"`:
			return fmt.Sprintf("seq %d has the data %s", m.Seq, m.Data)
		case m.Epoch != got[0].Epoch:
			return fmt.Sprintf("seq %d has epoch %s after %s", m.Seq, m.Epoch, got[0].Epoch)
		}
	}
	if len(got) != len(l.ids) {
		return fmt.Sprintf("received %d messages, %d were acked", len(got), len(l.ids))
	}
	return ""
}

// The check itself finds each fault.
func TestAckLogFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	l := &ackLog{ids: map[message.Seq]string{1: "a", 2: "b", 3: "c"}}
	m := func(seq message.Seq, id string) message.Message {
		return message.Message{Draft: message.Draft{ID: id, Data: []byte(`"` + id + `"`)}, Seq: seq, Epoch: "e"}
	}
	good := []message.Message{m(1, "a"), m(2, "b"), m(3, "c")}
	other := m(2, "b")
	other.Epoch = "f"
	cut := m(2, "b")
	cut.Data = []byte(`"`)
	for name, got := range map[string][]message.Message{
		"lost at the end": good[:2], "lost": {good[0], good[2]}, "duplicated": {good[0], good[0], good[1]},
		"reordered": {good[1], good[0], good[2]}, "another id": {good[0], m(2, "x"), good[2]},
		"another epoch": {good[0], other, good[2]}, "other data": {good[0], cut, good[2]},
		"never published": append(good[:3:3], m(4, "d")), "none": nil,
	} {
		if l.problem(got, 0) == "" {
			t.Errorf("%s: not found", name)
		}
	}
	if l.problem(good, 1) == "" || l.problem(good, 0) != "" {
		t.Error("a gap is not found, or found where there is none")
	}
}

// get returns the body of a page, read with apiKey.
func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // leave no idle connection behind
	req.Header.Set("Authorization", "Bearer "+apiKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v: %s", url, res.StatusCode, err, b)
	}
	return string(b)
}

// metric returns the value of one line of /metrics, "" when there is none.
func metric(t *testing.T, s *testkit.Server, name string) string {
	t.Helper()
	for line := range strings.Lines(get(t, s.URL()+"/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
