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

// A rawSocket is a socket whose every byte is the attacker's.
type rawSocket struct {
	net.Conn
	br *bufio.Reader
}

// The first byte of frames: the last of a message, and what it is.
const (
	textFrame      = 0x81
	binaryFrame    = 0x82
	closeFrame     = 0x88
	pingFrame      = 0x89
	firstFragment  = 0x01
	middleFragment = 0x00
	lastFragment   = 0x80
)

// maskedFrame is a client's frame.
func maskedFrame(first byte, payload string) string {
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

// upgradeRequest is a handshake with these lines beside those that it must have.
func upgradeRequest(lines ...string) string {
	return strings.Join(append([]string{
		"GET /ws HTTP/1.1", "Host: chat.example.com", "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, lines...), "\r\n") + "\r\n\r\n"
}

// forwardedFor makes a request one that comes through the proxy, from an address.
func forwardedFor(address string) string { return "X-Forwarded-For: " + address }

// open makes a handshake, as a stranger. Where there is no socket, refused is
// the answer.
func (a *attacker) open(handshake string) (w *rawSocket, refused string) {
	return a.openFrom("127.0.0.2", handshake)
}

// openFrom comes again where all attackers together come too fast.
func (a *attacker) openFrom(address, handshake string) (w *rawSocket, refused string) {
	for {
		c := a.dialFrom(address)
		_, _ = io.WriteString(c, handshake) // who is cut off is told so by the answer
		br := bufio.NewReader(c)
		head, err := br.Peek(len("HTTP/1.1 101"))
		switch {
		case err != nil:
			return nil, connectionEnd(err)
		case string(head) == "HTTP/1.1 101":
			if _, err := http.ReadResponse(br, nil); err != nil {
				return nil, connectionEnd(err)
			}
			return &rawSocket{c, br}, ""
		}
		if refused = readStatus(br); refused != "503 unavailable" {
			return nil, refused
		}
		a.pause(100 * time.Millisecond)
	}
}

// tryHandshake makes a handshake, and says how it went.
func (a *attacker) tryHandshake(handshake string) string {
	return a.tryHandshakeFrom("127.0.0.2", handshake)
}

func (a *attacker) tryHandshakeFrom(address, handshake string) string {
	w, refused := a.openFrom(address, handshake)
	if refused != "" {
		return refused
	}
	return w.firstAnswer()
}

// connectWithToken opens a socket as a user, whom a token lets in.
func (a *attacker) connectWithToken(token string, lines ...string) *rawSocket {
	w, refused := a.open(upgradeRequest(append(lines, "Authorization: Bearer "+token)...))
	if refused != "" {
		panic(attackAborted("not let in: " + refused))
	}
	if first := w.firstAnswer(); first != "welcome" {
		panic(attackAborted("not let in: " + first))
	}
	return w
}

// connectSelf is enter as the attacker's own user.
func (a *attacker) connectSelf() *rawSocket { return a.connectWithToken(tokenOf(a.user, nil)) }

// send sends frames, as text.
func (w *rawSocket) send(frames ...string) {
	for _, f := range frames {
		if _, err := io.WriteString(w, maskedFrame(textFrame, f)); err != nil {
			return // the answer tells
		}
	}
}

// readFrame reads one frame of the server's.
func (w *rawSocket) readFrame() (op byte, payload []byte, err error) {
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

// A receivedFrame is what attackers read of a frame.
type receivedFrame struct {
	Type, Ref, Code, Message, Room, ID, Session, From string
	Resumed, Duplicate                                bool
	Seq                                               int
	Data                                              json.RawMessage
}

// readUntil reads to the first frame that is wanted, or to the end, which it says.
func (w *rawSocket) readUntil(wanted func(*receivedFrame) bool) (f receivedFrame, end string) {
	for {
		op, payload, err := w.readFrame()
		switch {
		case err != nil:
			return receivedFrame{}, connectionEnd(err)
		case op == closeFrame && len(payload) < 2:
			return receivedFrame{}, "close"
		case op == closeFrame:
			return receivedFrame{}, fmt.Sprint("close ", binary.BigEndian.Uint16(payload))
		case op != textFrame:
			continue
		}
		f = receivedFrame{}
		_ = json.Unmarshal(payload, &f) // ours, held by other tests
		if wanted(&f) {
			return f, ""
		}
	}
}

// firstAnswer is the type of the first frame that answers something, or how the
// socket ended instead.
func (w *rawSocket) firstAnswer() string {
	f, end := w.readUntil(func(f *receivedFrame) bool { return f.Type != "heartbeat" })
	return end + f.Type
}

// answer is what comes for the frame with ref x: its type, or the code of an
// error, also of one whose frame could not be read.
func (w *rawSocket) answer() string {
	f, end := w.readUntil(func(f *receivedFrame) bool { return f.Ref == "x" || f.Type == "error" && f.Ref == "" })
	if f.Type == "error" && end == "" {
		return "error " + f.Code
	}
	if end != "" {
		return end
	}
	return f.Type
}

// stillWorks asks for something that is always refused in the same way.
func (w *rawSocket) stillWorks() string {
	w.send(`{"type":"leave","room":"never-joined","ref":"x"}`)
	if got := w.answer(); got != "error invalid" {
		return got
	}
	return "goes on"
}
