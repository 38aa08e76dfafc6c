package client

import (
	"encoding/json"
	"testing"
	"time"

	"switchyard/internal/message"
)

func TestRequestsAreEncoded(t *testing.T) {
	for _, c := range []struct {
		got  request
		want string
	}{
		{newRequest("leave", "7", "r:1"), `{"type":"leave","ref":"7","room":"r:1"}`},
		{newRequest("join", "8", "r").number("after", 9007199254740991).text("epoch", `a"b`),
			`{"type":"join","ref":"8","room":"r","after":9007199254740991,"epoch":"a\"b"}`},
		{newRequest("signal", "", "r").data([]byte(`{"<" : 1.50, "x":"\u0000"}`)),
			`{"type":"signal","room":"r","data":{"<" : 1.50, "x":"\u0000"}}`},
	} {
		got := string(c.got.end())
		if got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("not JSON: %s", got)
		}
	}
}

func TestMessageDataIsDecodedByteForByte(t *testing.T) {
	f, err := decodeFrame([]byte(`{"type":"message","room":"r","epoch":"e","seq":9007199254740991,` +
		`"id":"x","from":"api:billing","at":"2026-01-02T15:04:05.123456Z","data":{"b": 1.50,"a":"<\u0000>"},"later":[1]}`))
	if err != nil {
		t.Fatal(err)
	}
	m := f.message()
	if m.Seq != 9007199254740991 || m.From != "api:billing" || m.ID != "x" || m.Room != "r" || m.Epoch != "e" {
		t.Errorf("%+v", m)
	}
	if string(m.Data) != `{"b": 1.50,"a":"<\u0000>"}` {
		t.Errorf("data %s", m.Data)
	}
	if want := time.Date(2026, 1, 2, 15, 4, 5, 123456000, time.UTC); !m.At.Equal(want) {
		t.Errorf("at %v", m.At)
	}
}

func TestAWelcomeIsDecoded(t *testing.T) {
	w, err := decodeWelcome([]byte(`{"type":"welcome","session":"s","resumed":true,"user":"ann","node":"n","color":"green",` +
		`"deployment":"d","version":"1.2","heartbeat_ms":25000,"max_frame":65536}`))
	if err != nil || w.User == nil || *w.User != "ann" || w.Color != "green" || !w.Resumed || w.MaxFrame != 65536 {
		t.Errorf("%+v, %v", w, err)
	}
	for _, bad := range []string{`{"type":"heartbeat"}`, `[]`, ``} {
		if _, err := decodeWelcome([]byte(bad)); err == nil {
			t.Errorf("%q was decoded as a welcome", bad)
		}
	}
}

func TestErrorsSayHowLongToWait(t *testing.T) {
	for ms, want := range map[string]time.Duration{
		``: time.Second, `,"retry_after_ms":250`: 250 * time.Millisecond, `,"retry_after_ms":99999999`: time.Minute,
	} {
		f, err := decodeFrame([]byte(`{"type":"error","code":"unavailable","message":"m"` + ms + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if e := f.err(); e.retryDelay(zeroRandom) != want || !e.temporary() || e.Error() != "the service answered unavailable: m" {
			t.Errorf("%q: waits %v: %v", ms, e.retryDelay(zeroRandom), e)
		}
	}
}

// No frame of a service makes the client panic or go back to an earlier position.
func FuzzHandle(f *testing.F) {
	for _, seed := range []string{
		`{"type":"message","room":"r","epoch":"e","seq":4,"id":"x","from":null,"at":"2026-01-02T15:04:05Z","data":1}`,
		`{"type":"gap","room":"r","epoch":"e","from":4,"to":9,"reason":"trimmed"}`,
		`{"type":"joined","ref":"1","room":"r","epoch":"e","seq":3,"first":1}`,
		`{"type":"ack","ref":"1","room":"r","epoch":"e","seq":4,"id":"x"}`,
		`{"type":"error","ref":"1","code":"unavailable","message":"m","retry_after_ms":5}`,
		`{"type":"history","ref":"1","room":"r","messages":[{"seq":1}],"more":false}`,
		`{"type":"signal","room":"r","from":1,"data":null}`, `{"type":"heartbeat"}`,
		`{"type":"move","after_ms":0,"deadline_ms":1,"avoid":{"node":"n"},"reason":"r"}`, `{"type":"presence","room":"r","count":1}`,
		`{"type":"authenticated","user":"ann","auth_expires_ms":5}`, `null`, `[`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		last := message.Seq(3)
		newConnection := func(number uint64) *connection {
			return &connection{
				number: number, sock: &socket{broken: true}, ended: make(chan struct{}),
				memberships: map[message.Room]*membership{"r": {ref: "1", joined: true, epoch: "e"}},
			}
		}
		c := newClient(Options{}.withDefaults())
		c.closing, c.current, c.next = true, newConnection(1), newConnection(2)
		c.parts.rooms.signalDedup = c.parts.rooms.signalDedup.start()
		c.parts.rooms.byName["r"] = &roomState{name: "r", readers: []*reader{{position: After("e", last), handler: Handler{
			Message: func(m message.Message) {
				if m.Epoch == "e" && m.Seq != last+1 {
					t.Errorf("%d was delivered after %d", m.Seq, last)
				}
			},
		}}}}
		_ = c.link.handleFrame(c.current, b)
		if c.current == nil || c.parts.rooms.byName["r"] == nil {
			return
		}
		seen := c.parts.rooms.byName["r"].position()
		_ = c.link.handleFrame(c.next, b) // during a move it arrives twice
		if at, ok := c.Position("r"); ok && at.Epoch == "e" && (at.After < last || (at.After > seen.After && seen.Epoch == "e")) {
			t.Errorf("the position went from %d to %d, and then to %d", last, seen.After, at.After)
		}
	})
}
