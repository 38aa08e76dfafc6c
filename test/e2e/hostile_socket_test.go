package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A wire is a socket whose every byte is the attacker's.
type wire struct {
	net.Conn
	br *bufio.Reader
}

// The first byte of frames: the last of a message, and what it is.
const (
	textFrame   = 0x81
	binaryFrame = 0x82
	closeFrame  = 0x88
	pingFrame   = 0x89
	beginText   = 0x01
	moreText    = 0x00
	lastText    = 0x80
)

// masked is a client's frame.
func masked(first byte, payload string) string {
	head := []byte{first, 0x80 | byte(len(payload))}
	switch n := len(payload); {
	case n > 65535:
		head = binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, uint64(n))
	case n > 125:
		head = binary.BigEndian.AppendUint16([]byte{first, 0x80 | 126}, uint16(n))
	}
	mask := [4]byte{0x5A, 0x00, 0xFF, 0x17}
	body := []byte(payload)
	for i := range body {
		body[i] ^= mask[i%4]
	}
	return string(head) + string(mask[:]) + string(body)
}

// upgrade is a handshake with these lines beside those that it must have.
func upgrade(lines ...string) string {
	return strings.Join(append([]string{
		"GET /ws HTTP/1.1", "Host: chat.example.com", "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, lines...), "\r\n") + "\r\n\r\n"
}

// through makes a request one that comes through the proxy, from an address.
func through(address string) string { return "X-Forwarded-For: " + address }

// open makes a handshake, as a stranger. Where there is no socket, refused is
// the answer.
func (a *attacker) open(handshake string) (w *wire, refused string) {
	return a.openFrom("127.0.0.2", handshake)
}

// openFrom comes again where all attackers together come too fast.
func (a *attacker) openFrom(address, handshake string) (w *wire, refused string) {
	for {
		c := a.dialFrom(address)
		_, _ = io.WriteString(c, handshake) // who is cut off is told so by the answer
		br := bufio.NewReader(c)
		head, err := br.Peek(len("HTTP/1.1 101"))
		switch {
		case err != nil:
			return nil, ended(err)
		case string(head) == "HTTP/1.1 101":
			if _, err := http.ReadResponse(br, nil); err != nil {
				return nil, ended(err)
			}
			return &wire{c, br}, ""
		}
		if refused = readStatus(br); refused != "503 unavailable" {
			return nil, refused
		}
		a.pause(100 * time.Millisecond)
	}
}

// knock makes a handshake, and says how it went.
func (a *attacker) knock(handshake string) string { return a.knockFrom("127.0.0.2", handshake) }

func (a *attacker) knockFrom(address, handshake string) string {
	w, refused := a.openFrom(address, handshake)
	if refused != "" {
		return refused
	}
	return w.first()
}

// enter opens a socket as a user, whom a token lets in.
func (a *attacker) enter(token string, lines ...string) *wire {
	w, refused := a.open(upgrade(append(lines, "Authorization: Bearer "+token)...))
	if refused != "" {
		panic(gaveUp("not let in: " + refused))
	}
	if first := w.first(); first != "welcome" {
		panic(gaveUp("not let in: " + first))
	}
	return w
}

// own is enter as the attacker's own user.
func (a *attacker) own() *wire { return a.enter(tokenOf(a.user, nil)) }

// say sends frames, as text.
func (w *wire) say(frames ...string) {
	for _, f := range frames {
		if _, err := io.WriteString(w, masked(textFrame, f)); err != nil {
			return // the answer tells
		}
	}
}

// next reads one frame of the server's.
func (w *wire) next() (op byte, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(w.br, head[:2]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1])
	switch size {
	case 126:
		_, err = io.ReadFull(w.br, head[2:4])
		size = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		_, err = io.ReadFull(w.br, head[2:10])
		size = binary.BigEndian.Uint64(head[2:])
	}
	if err == nil && size > 4<<20 {
		err = fmt.Errorf("a frame of %d bytes", size)
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(w.br, payload)
	return head[0], payload, err
}

// A heard is what attackers read of a frame.
type heard struct {
	Type, Ref, Code, Message, Room, ID, Session, From string
	Resumed, Duplicate                                bool
	Seq                                               int
	Data                                              json.RawMessage
}

// until reads to the first frame that is wanted, or to the end, which it says.
func (w *wire) until(wanted func(*heard) bool) (f heard, end string) {
	for {
		op, payload, err := w.next()
		switch {
		case err != nil:
			return heard{}, ended(err)
		case op == closeFrame && len(payload) < 2:
			return heard{}, "close"
		case op == closeFrame:
			return heard{}, fmt.Sprint("close ", binary.BigEndian.Uint16(payload))
		case op != textFrame:
			continue
		}
		f = heard{}
		_ = json.Unmarshal(payload, &f) // ours, held by other tests
		if wanted(&f) {
			return f, ""
		}
	}
}

// first is the type of the first frame that answers something, or how the
// socket ended instead.
func (w *wire) first() string {
	f, end := w.until(func(f *heard) bool { return f.Type != "heartbeat" })
	return end + f.Type
}

// answer is what comes for the frame with ref x: its type, or the code of an
// error, also of one whose frame could not be read.
func (w *wire) answer() string {
	f, end := w.until(func(f *heard) bool { return f.Ref == "x" || f.Type == "error" && f.Ref == "" })
	if f.Type == "error" && end == "" {
		return "error " + f.Code
	}
	if end != "" {
		return end
	}
	return f.Type
}

// goesOn asks for something that is always refused in the same way.
func (w *wire) goesOn() string {
	w.say(`{"type":"leave","room":"never-joined","ref":"x"}`)
	if got := w.answer(); got != "error invalid" {
		return got
	}
	return "goes on"
}
