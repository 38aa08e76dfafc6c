package release

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
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

// joinRoom connects a client that joins a room from its start. The client moves on to
// the next of the servers when one fails.
func joinRoom(t *testing.T, room message.Room, servers ...*testkit.Server) *roomClient {
	t.Helper()
	c := &roomClient{t: t, room: room}
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.SocketURL())
	}
	ctx := testkit.Within(t, testkit.Timeout)
	var err error
	if c.client, err = client.Dial(ctx, client.Options{URLs: urls}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	_, err = c.client.Join(ctx, room, client.Start(), client.Handler{Message: c.onMessage, Signal: c.onSignal, Gap: c.onGap})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *roomClient) onMessage(m message.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = append(c.received, m)
}

func (c *roomClient) onSignal(s client.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.signals = append(c.signals, string(s.Data))
}

func (c *roomClient) onGap(client.Gap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gaps++
}

func (c *roomClient) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.received)
}

func (c *roomClient) hasSignal(signal string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.signals {
		if s == signal {
			return true
		}
	}
	return false
}

// publish publishes a message whose data is its id, and records the ack.
func (c *roomClient) publish(l *ackLog, id string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), testkit.Timeout)
	defer cancel()
	ack, err := c.client.Publish(ctx, c.room, json.RawMessage(`"`+id+`"`), id)
	if err != nil {
		c.t.Errorf("publish %s: %v", id, err)
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
func (l *ackLog) check(name string, c *roomClient) {
	c.t.Helper()
	testkit.Eventually(c.t, "all messages at "+name, func() bool { return c.count() >= l.size() })
	c.client.Close() // a delivery after this would be a duplicate
	if why := l.problem(c.received, c.gaps); why != "" {
		c.t.Errorf("%s: %s", name, why)
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
	res, body := testkit.Call(t, http.MethodGet, url, apiKey, "")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %s", url, res.StatusCode, body)
	}
	return body
}

// metric returns the value of one line of /metrics, "" when there is none.
func metric(t *testing.T, s *testkit.Server, name string) string {
	t.Helper()
	return testkit.MetricOn(get(t, s.URL()+"/metrics"), name)
}
