package protocol

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// object decodes the payload of a frame after checking its header.
func object(t *testing.T, f Frame) map[string]any {
	t.Helper()
	if f[0] != 0x81 {
		t.Fatalf("first byte %#x, want a final text frame", f[0])
	}
	var v map[string]any
	if err := json.Unmarshal(Payload(f), &v); err != nil {
		t.Fatalf("%s: %v", Payload(f), err)
	}
	return v
}

func stored(data string) *message.Message {
	return &message.Message{
		Draft: message.Draft{Room: "a", ID: "i1", Data: []byte(data)},
		Epoch: "e1",
		Seq:   7,
		At:    time.Date(2026, 1, 2, 15, 4, 5, 6000, time.UTC),
	}
}

func TestMessageCarriesTheDataByteForByte(t *testing.T) {
	for _, data := range []string{`1`, `{ "a" :  1e400 }`, `"\u0000"`, `[` + strings.Repeat("1,", 70000) + `1]`} {
		f := Message(stored(data))
		if !bytes.HasSuffix(f, []byte(`"data":`+data+`}`)) {
			t.Errorf("data of %d bytes changed on its way", len(data))
		}
		if want := len(Payload(f)); lengthOf(f) != want {
			t.Errorf("header says %d bytes, payload has %d", lengthOf(f), want)
		}
	}
}

// lengthOf reads the length of RFC 6455 §5.2 from the header.
func lengthOf(f Frame) int {
	switch n := int(f[1]); n {
	case 126:
		return int(f[2])<<8 | int(f[3])
	case 127:
		return int(f[6])<<24 | int(f[7])<<16 | int(f[8])<<8 | int(f[9])
	default:
		return n
	}
}

func TestFramesAreTheWireOfTheDocument(t *testing.T) {
	m := stored(`{"x":1}`)
	page := &message.Page{Epoch: "e1", Head: 7, First: 1, Messages: []message.Message{*m, *m}, More: true}
	named := stored(`1`)
	named.From = `o"brien`
	pub := &message.Publication{Draft: m.Draft, Epoch: "e1", Seq: 7}
	again := *pub
	again.Duplicate = true
	tests := []struct {
		name string
		got  Frame
		want string
	}{
		{"message", Message(m), `{"type":"message","room":"a","epoch":"e1","seq":7,"id":"i1","from":null,"at":"2026-01-02T15:04:05.000006Z","data":{"x":1}}`},
		{"message with a user", Message(named), `{"type":"message","room":"a","epoch":"e1","seq":7,"id":"i1","from":"o\"brien","at":"2026-01-02T15:04:05.000006Z","data":1}`},
		{"signal", Signal("a", "", []byte(`"typing"`)), `{"type":"signal","room":"a","from":null,"data":"typing"}`},
		{"ack", Ack(`"r"`, pub), `{"type":"ack","ref":"r","room":"a","epoch":"e1","seq":7,"id":"i1"}`},
		{"ack of a duplicate", Ack("", &again), `{"type":"ack","room":"a","epoch":"e1","seq":7,"id":"i1","duplicate":true}`},
		{"joined", Joined(`"j"`, "a", "e1", 7, 3), `{"type":"joined","ref":"j","room":"a","epoch":"e1","seq":7,"first":3}`},
		{"left", Left("", "a", "e1", 7, 3), `{"type":"left","room":"a","epoch":"e1","seq":7,"first":3}`},
		{"gap", Gap("a", "e1", 1, 2, GapTrimmed), `{"type":"gap","room":"a","epoch":"e1","from":1,"to":2,"reason":"trimmed"}`},
		{"heartbeat", Heartbeat(m.At), `{"type":"heartbeat","at":"2026-01-02T15:04:05.000006Z"}`},
		{"error", (&Error{Code: CodeUnavailable, Message: "a \"b\"", RetryAfter: time.Second}).Encode(`"r"`, "a", "i1"), `{"type":"error","ref":"r","room":"a","id":"i1","code":"unavailable","message":"a \"b\"","retry_after_ms":1000}`},
		{"history", History(`"h"`, "a", page), `{"type":"history","ref":"h","room":"a","epoch":"e1","messages":[` + string(Payload(Message(m))) + `,` + string(Payload(Message(m))) + `],"more":true}`},
		{"welcome", Welcome{Session: "s", Node: "n", Color: "blue", Deployment: "d", Version: "v", HeartbeatMS: 25000, MaxFrame: 65536}.Encode(), `{"type":"welcome","session":"s","resumed":false,"user":null,"node":"n","color":"blue","deployment":"d","version":"v","heartbeat_ms":25000,"max_frame":65536}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			object(t, tt.got)
			if got := string(Payload(tt.got)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestControlFrames(t *testing.T) {
	if got, want := string(PingFrame(258)), "\x89\x08\x00\x00\x00\x00\x00\x00\x01\x02"; got != want {
		t.Errorf("ping %q, want %q", got, want)
	}
	for _, code := range []CloseCode{CloseNormal, CloseProtocol, CloseBinary, CloseUTF8, ClosePolicy, CloseTooBig, CloseInternal, CloseRestart, CloseTooMany, CloseSlow, CloseUnanswered, 4999} {
		f := CloseFrame(code)
		if !IsClose(f) || int(f[1]) != len(f)-2 || len(f) > 125 || CloseCode(int(f[2])<<8|int(f[3])) != code {
			t.Errorf("close frame of %d: %q", code, f)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	m := stored(`"` + strings.Repeat("x", 126) + `"`)
	b.ReportAllocs()
	for b.Loop() {
		Message(m)
	}
}

func BenchmarkDecode(b *testing.B) {
	frame := []byte(`{"type":"publish","ref":"17","room":"room1","id":"0190-77","data":"` + strings.Repeat("x", 126) + `"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(frame); err != nil {
			b.Fatal(err)
		}
	}
}
