package client

import (
	"context"
	"encoding/json"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A golden is a file of internal/protocol/testdata. test/node reads the same files.
type golden struct {
	From    string
	Frame   string
	Request *struct {
		Type          string
		Room          message.Room
		After, Before *message.Seq
		Epoch         message.Epoch
		Limit         int
		ID, Data      string
		Token, From   string
		HandshakeMS   int64 `json:"handshake_ms"`
	}
}

func eachGolden(t *testing.T, from string, check func(t *testing.T, name string, g golden)) {
	t.Helper()
	paths, err := filepath.Glob("../protocol/testdata/v1/*.json")
	if err != nil || len(paths) < 30 {
		t.Fatalf("%d golden frames, %v", len(paths), err)
	}
	for _, path := range paths {
		b := testkit.ReadFile(t, path)
		var g golden
		if err := json.Unmarshal(b, &g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if name := strings.TrimSuffix(filepath.Base(path), ".json"); g.From == from {
			t.Run(name, func(t *testing.T) { check(t, name, g) })
		}
	}
}

func TestGoldenServerFramesAreDecoded(t *testing.T) {
	eachGolden(t, "server", func(t *testing.T, _ string, g golden) {
		var want map[string]any
		if err := json.Unmarshal([]byte(g.Frame), &want); err != nil {
			t.Fatal(err)
		}
		f, err := decodeFrame([]byte(g.Frame))
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodedFields(f, []byte(g.Frame))
		if err != nil {
			t.Fatal(err)
		}
		// An absent field is its zero value, and null is an absent user.
		for field, value := range want {
			if !reflect.DeepEqual(got[field], value) {
				t.Errorf("%s: %v, want %v", field, got[field], value)
			}
		}
		for field, value := range got {
			if _, present := want[field]; !present && value != nil && !reflect.ValueOf(value).IsZero() {
				t.Errorf("%s is %v, and the frame does not have it", field, value)
			}
		}
	})
}

// decodedFields returns what this package decodes from a frame, as the fields of the
// frame.
func decodedFields(f *serverFrame, b []byte) (map[string]any, error) {
	got := map[string]any{"type": f.Type, "ref": f.Ref, "room": string(f.Room), "epoch": string(f.Epoch)}
	switch f.Type {
	case "welcome":
		w, err := decodeWelcome(b)
		if err != nil {
			return nil, err
		}
		delete(got, "room")
		encoded, err := json.Marshal(w)
		if err != nil {
			return nil, err
		}
		return got, json.Unmarshal(encoded, &got)
	case "message":
		return messageFields(f.message()), nil
	case "gap":
		g, err := f.gap()
		got["from"], got["to"], got["reason"] = float64(g.From), float64(g.To), g.Reason
		return got, err
	case "signal":
		var data any
		err := json.Unmarshal(f.Data, &data)
		got["from"], got["data"] = userOrNull(f.user()), data
		return got, err
	case "history":
		h, err := f.history()
		messages := []any{}
		for _, m := range h.Messages {
			messages = append(messages, messageFields(m))
		}
		got["messages"], got["more"] = messages, h.More
		return got, err
	case "error":
		e := f.err()
		got["code"], got["message"], got["id"] = e.Code, e.Message, f.ID
		got["retry_after_ms"] = float64(e.RetryAfter.Milliseconds())
		return got, nil
	case "presence":
		got["count"], got["members"] = float64(f.Count), wireMembers(f.Members)
		got["joined"], got["left"] = wireMembers(f.Joined), wireMembers(f.Left)
		return got, nil
	case "move":
		got["after_ms"], got["deadline_ms"], got["reason"] = float64(f.After), float64(f.Deadline), f.Reason
		got["avoid"] = wireAvoid(f.Avoid)
		return got, nil
	case "authenticated":
		got["user"], got["auth_expires_ms"] = any(nil), float64(f.AuthExpires)
		if f.User != nil {
			got["user"] = *f.User
		}
		return got, nil
	case "heartbeat":
		got["at"] = f.At.Format(wireTime)
		return got, nil
	}
	got["seq"], got["first"], got["id"], got["duplicate"] = float64(f.Seq), float64(f.First), f.ID, f.Duplicate
	return got, nil
}

const wireTime = "2006-01-02T15:04:05.000000Z"

func messageFields(m message.Message) map[string]any {
	got := map[string]any{
		"type": "message", "room": string(m.Room), "epoch": string(m.Epoch), "seq": float64(m.Seq), "id": m.ID,
		"from": userOrNull(m.From), "at": m.At.UTC().Format(wireTime),
	}
	var data any
	_ = json.Unmarshal(m.Data, &data)
	got["data"] = data
	return got
}

// wireMembers returns members as a frame has them, nil for an absent field.
func wireMembers(all []Member) any {
	if all == nil {
		return nil
	}
	members := []any{}
	for _, m := range all {
		user := any(nil)
		if m.User != nil {
			user = *m.User
		}
		members = append(members, map[string]any{"session": m.Session, "user": user})
	}
	return members
}

func wireAvoid(a Avoid) any {
	fields := map[string]any{}
	if a.Node != "" {
		fields["node"] = a.Node
	}
	if a.Deployment != "" {
		fields["deployment"] = a.Deployment
	}
	return fields
}

func userOrNull(user string) any {
	if user == "" {
		return nil
	}
	return user
}

// goldenNotSent are requests that this client never sends, and why.
var goldenNotSent = map[string]string{
	"client-publish-without-id": "every publish has an id, or it could not be resent",
	"client-unknown-fields":     "only a later version has them",
}

var anyRef = regexp.MustCompile(`"ref":"r\d+"`)

func TestGoldenRequestsAreSent(t *testing.T) {
	eachGolden(t, "client", func(t *testing.T, name string, g golden) {
		if g.Request == nil || goldenNotSent[name] != "" {
			return
		}
		withService(t, func(t *testing.T, s *fakeService) {
			r := g.Request
			var opts Options
			if r.Token != "" {
				opts.Token = func(context.Context) (string, error) { return r.Token, nil }
			}
			c := s.newClient(opts)
			p := s.accept()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if r.Type == "leave" {
				go func() { _, _ = c.Join(ctx, r.Room, Now(), Handler{}) }()
				p.expect("join")
			}
			if r.Type == "moved" { // sent on the next connection
				p.send(`{"type":"move","after_ms":0,"deadline_ms":1000,"avoid":{"node":"n9"},"reason":"deploy"}`)
				p = s.acceptWithoutWelcome()
				time.Sleep(time.Duration(r.HandshakeMS) * time.Millisecond) // of the bubble
				p.send(`{"type":"welcome","node":"n2","heartbeat_ms":25000,"max_frame":1000}`)
			}
			go makeCall(ctx, c, g)
			synctest.Wait()
			_, b, err := p.WS.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got := anyRef.ReplaceAllString(string(b), `"ref":"r1"`)
			if !strings.Contains(g.Frame, `"ref"`) {
				got = strings.Replace(got, `"ref":"r1",`, "", 1)
			}
			if got != g.Frame {
				t.Errorf("got  %s\nwant %s", got, g.Frame)
			}
		})
	})
}

// makeCall makes the call that sends the golden's frame.
func makeCall(ctx context.Context, c *Client, g golden) {
	r := g.Request
	switch r.Type {
	case "join":
		from := Now()
		if r.After != nil {
			from = After(r.Epoch, *r.After)
		}
		_, _ = c.Join(ctx, r.Room, from, Handler{})
	case "leave":
		c.Leave(r.Room)
	case "publish":
		_, _ = c.Publish(ctx, r.Room, json.RawMessage(r.Data), r.ID)
	case "signal":
		_ = c.Signal(r.Room, json.RawMessage(r.Data))
	case "history":
		h := HistoryRange{Limit: r.Limit}
		if r.After != nil {
			h.Forward, h.After = true, *r.After
		}
		if r.Before != nil {
			h.Before = *r.Before
		}
		_, _ = c.History(ctx, r.Room, h)
	case "presence":
		_, _ = c.Presence(ctx, r.Room)
	case "ping":
		c.Reconnect()
	case "auth":
		_ = c.RefreshToken(ctx)
	}
}
