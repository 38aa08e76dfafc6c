package protocol

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// decodeFrame checks the header of a frame and decodes its payload.
func decodeFrame(t *testing.T, f Frame) map[string]any {
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

func storedMessage(data string) *message.Message {
	return &message.Message{
		Draft: message.Draft{Room: "a", ID: "i1", Data: []byte(data)},
		Epoch: "e1",
		Seq:   7,
		At:    time.Date(2026, 1, 2, 15, 4, 5, 6000, time.UTC),
	}
}

func TestMessageCarriesTheDataByteForByte(t *testing.T) {
	for _, data := range []string{`1`, `{ "a" :  1e400 }`, `"\u0000"`, `[` + strings.Repeat("1,", 70000) + `1]`} {
		f := Message(storedMessage(data))
		if !bytes.HasSuffix(f, []byte(`"data":`+data+`}`)) {
			t.Errorf("data of %d bytes was changed", len(data))
		}
		if want := len(Payload(f)); payloadLength(f) != want {
			t.Errorf("the header announces %d bytes, the payload has %d", payloadLength(f), want)
		}
	}
}

// The header of a text frame has 2, 4 or 10 bytes, depending on the length of the
// payload (RFC 6455 §5.2).
func TestEveryPayloadLengthHasItsHeader(t *testing.T) {
	for size, header := range map[int]int{100: 2, 125: 2, 126: 4, 1<<16 - 1: 4, 1 << 16: 10} {
		f := finishFrame(append(newTextFrame(size), strings.Repeat("x", size)...))
		if len(f) != header+size || payloadLength(f) != size || len(Payload(f)) != size {
			t.Errorf("a payload of %d bytes makes a frame of %d that announces %d, want a header of %d", size, len(f), payloadLength(f), header)
		}
	}
}

// payloadLength reads the payload length from the header (RFC 6455 §5.2).
func payloadLength(f Frame) int {
	switch n := int(f[1]); n {
	case 126:
		return int(f[2])<<8 | int(f[3])
	case 127:
		return int(f[6])<<24 | int(f[7])<<16 | int(f[8])<<8 | int(f[9])
	default:
		return n
	}
}

func TestControlFrames(t *testing.T) {
	if got, want := string(PingFrame(258)), "\x89\x08\x00\x00\x00\x00\x00\x00\x01\x02"; got != want {
		t.Errorf("ping %q, want %q", got, want)
	}
	for _, code := range []CloseCode{CloseNormal, CloseProtocol, CloseBinary, CloseUTF8, ClosePolicy, CloseTooBig, CloseRestart, CloseTooManyConnections, CloseSlow, CloseNoPong, 4999} {
		f := CloseFrame(code)
		if !IsClose(f) || int(f[1]) != len(f)-2 || len(f) > 125 || CloseCode(int(f[2])<<8|int(f[3])) != code {
			t.Errorf("the close frame of %d is %q", code, f)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	m := storedMessage(`"` + strings.Repeat("x", 126) + `"`)
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

// No frame is larger than docs/protocol.md says, even with names of the characters that
// take the most bytes in JSON.
func TestTheLargestFramesAreAsDocumented(t *testing.T) {
	const pageBytes, maxFrame, presenceLimit = 256 << 10, 64 << 10, 200
	from := strings.Repeat("\x01", message.MaxUserLength)
	stored := func(size int) message.Message {
		return message.Message{
			Draft: message.Draft{
				Room: message.Room(strings.Repeat("r", 128)), ID: strings.Repeat("i", 64), From: from,
				Data: []byte(`"` + strings.Repeat("x", size-2) + `"`),
			},
			Epoch: "3a81627cc5b00f7a", Seq: MaxSeq, At: time.Date(2026, 11, 23, 2, 36, 6, 825391000, time.UTC),
		}
	}
	page := message.Page{Epoch: "3a81627cc5b00f7a", Head: MaxSeq, First: 1, More: true}
	for range MaxHistory {
		page.Messages = append(page.Messages, stored(pageBytes/MaxHistory))
	}
	ref := Ref(`"` + strings.Repeat("f", 62) + `"`)
	if size := len(History(ref, page.Messages[0].Room, &page)); size > 512<<10 || size < pageBytes {
		t.Errorf("a page of history takes %d bytes, over 512 KiB", size)
	}
	largest := stored(maxFrame)
	if size := len(Message(&largest)); size > maxFrame+2<<10 {
		t.Errorf("a message takes %d bytes, over max_frame and 2 KiB", size)
	}
	p := Presence{Room: largest.Room, Count: presenceLimit}
	for range presenceLimit {
		p.Members = append(p.Members, PresenceEntry{Session: strings.Repeat("s", message.MaxUserLength), User: &from})
	}
	if size := len(p.Encode(ref)); size > presenceLimit<<10 {
		t.Errorf("a presence takes %d bytes, over 1 KiB for each member", size)
	}
}
