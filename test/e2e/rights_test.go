package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A tokenSource is the Options.Token of a client whose user or rights change.
type tokenSource struct {
	mu    sync.Mutex
	token string
}

func (s *tokenSource) set(user string, rooms jsonObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = tokenOf(user, jsonObject{"rooms": rooms})
}

func (s *tokenSource) get(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, nil
}

// A user loses the right to read a room and gets it back, on an open connection and at a
// reconnect. The room says so each time, and nothing in it is lost.
func TestRightsThatShrinkAndComeBack(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"AUTH_JWT_SECRET": signingSecret})
	proxy := testkit.NewProxy(t, s.Addr)
	ctx := testkit.Within(t, testkit.Timeout)
	var token tokenSource
	token.set("ada", jsonObject{"a": "rw"})
	c, err := client.Dial(ctx, client.Options{URLs: []string{"ws://" + proxy.Addr() + "/ws"}, Token: token.get})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	events := make(chan string, 100)
	if _, err := c.Join(ctx, "a", client.Start(), client.Handler{
		Message: func(m message.Message) { events <- string(m.Data) },
		Joined:  func(client.Joined) { events <- "joined" },
		Ended: func(err error) {
			var refused *client.Error
			events <- fmt.Sprint("ended ", errors.As(err, &refused) && refused.Code == "forbidden")
		},
	}); err != nil {
		t.Fatal(err)
	}
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			select {
			case got := <-events:
				if got != w {
					t.Fatalf("the room got %q, want %q", got, w)
				}
			case <-ctx.Done():
				t.Fatalf("the room did not get %q", w)
			}
		}
	}
	refresh := func() {
		t.Helper()
		if err := c.RefreshToken(ctx); err != nil {
			t.Fatal(err)
		}
	}
	publish := func(data string) {
		t.Helper()
		if _, err := c.Publish(ctx, "a", json.RawMessage(data), ""); err != nil {
			t.Fatal(err)
		}
	}
	publish("1")
	expect("joined", "1")
	token.set("ada", jsonObject{"a": "w"})
	refresh()
	expect("ended true")
	publish("2")
	token.set("ada", jsonObject{"a": "rw"})
	refresh()
	expect("joined", "2")
	token.set("ada", jsonObject{"a": "w"})
	proxy.Cut()
	expect("ended true")
	publish("3")
	token.set("ada", jsonObject{"a": "rw"})
	refresh()
	expect("joined", "3")
}

// The next connection is another user's: what the first user has published without an
// answer is not stored as the second one's.
func TestAnotherUserBehindTheNextConnection(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"AUTH_JWT_SECRET": signingSecret})
	proxy := testkit.NewProxy(t, s.Addr)
	ctx := testkit.Within(t, testkit.Timeout)
	var token tokenSource
	token.set("ann", jsonObject{"a": "rw"})
	c, err := client.Dial(ctx, client.Options{URLs: []string{"ws://" + proxy.Addr() + "/ws"}, Token: token.get})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	proxy.Retarget(fmt.Sprint("127.0.0.1:", testkit.FreePort())) // nobody is there
	proxy.Cut()
	token.set("bob", jsonObject{"a": "rw"})
	outcome := make(chan error, 1)
	if err := c.Send("a", []byte(`"ann's"`), "", func(_ client.Ack, err error) { outcome <- err }); err != nil {
		t.Fatal(err)
	}
	proxy.Retarget(s.Addr)
	select {
	case err := <-outcome:
		if !errors.Is(err, client.ErrUserChanged) {
			t.Errorf("the publish of ann: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the publish of ann has no outcome")
	}
	ack, err := c.Publish(ctx, "a", json.RawMessage(`"bob's"`), "")
	if err != nil || ack.Seq != 1 {
		t.Errorf("the publish of bob: %+v, %v; want the first of the room", ack, err)
	}
}
