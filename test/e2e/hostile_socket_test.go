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

	"switchyard/internal/testkit"
)

// A rawSocket is a WebSocket whose every byte is the attacker's.
type rawSocket struct {
	net.Conn
	br *bufio.Reader
}

// First bytes of frames: whether it is the last of its message, and the opcode.
const (
	textFrame      = 0x81
	binaryFrame    = 0x82
	closeFrame     = 0x88
	pingFrame      = 0x89
	firstFragment  = 0x01
	middleFragment = 0x00
	lastFragment   = 0x80
)

// upgradeRequest returns a handshake with these lines beside the required ones.
func upgradeRequest(lines ...string) string {
	return strings.Join(append([]string{
		"GET /ws HTTP/1.1", "Host: chat.example.com", "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, lines...), "\r\n") + "\r\n\r\n"
}

// forwardedFor returns the header of a proxy for a client's address.
func forwardedFor(address string) string { return "X-Forwarded-For: " + address }

// open makes a handshake from an untrusted address. Where that opens no socket, refused
// is the answer.
func (a *attacker) open(handshake string) (w *rawSocket, refused string) {
	return a.openFrom("127.0.0.2", handshake)
}

// openFrom is open from an address. It tries again where all attackers together exceed
// the rate of handshakes.
func (a *attacker) openFrom(address, handshake string) (w *rawSocket, refused string) {
	for {
		c := a.dialFrom(address)
		_, _ = io.WriteString(c, handshake) // reading fails, too, when the connection is closed
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

// tryHandshake makes a handshake, and returns the first answer.
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

// connectWithToken opens a socket with a token, and aborts the attack unless it is
// admitted.
func (a *attacker) connectWithToken(token string, lines ...string) *rawSocket {
	w, refused := a.open(upgradeRequest(append(lines, "Authorization: Bearer "+token)...))
	if refused != "" {
		panic(attackAborted("not admitted: " + refused))
	}
	if first := w.firstAnswer(); first != "welcome" {
		panic(attackAborted("not admitted: " + first))
	}
	return w
}

// connectAsOwnUser opens a socket as the attacker's own user.
func (a *attacker) connectAsOwnUser() *rawSocket { return a.connectWithToken(tokenOf(a.user, nil)) }

// send sends text frames.
func (s *rawSocket) send(frames ...string) {
	for _, f := range frames {
		if _, err := io.WriteString(s, testkit.MaskedFrame(textFrame, f)); err != nil {
			return // reading fails, too
		}
	}
}

// readFrame reads one frame of the server.
func (s *rawSocket) readFrame() (op byte, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(s.br, head[:2]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1])
	switch size {
	case 126:
		_, err = io.ReadFull(s.br, head[2:4])
		size = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		_, err = io.ReadFull(s.br, head[2:10])
		size = binary.BigEndian.Uint64(head[2:])
	}
	if err == nil && size > 4<<20 {
		err = fmt.Errorf("a frame of %d bytes", size)
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(s.br, payload)
	return head[0], payload, err
}

// A receivedFrame has the fields of frames that attackers read.
type receivedFrame struct {
	Type, Ref, Code, Message, Room, ID, Session, From string
	Resumed, Duplicate                                bool
	Seq                                               int
	Data                                              json.RawMessage
}

// readUntil reads up to the first wanted frame. end is how the socket ended before it.
func (s *rawSocket) readUntil(wanted func(*receivedFrame) bool) (f receivedFrame, end string) {
	for {
		op, payload, err := s.readFrame()
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
		_ = json.Unmarshal(payload, &f) // other tests check that our frames are JSON
		if wanted(&f) {
			return f, ""
		}
	}
}

// firstAnswer returns the type of the first frame that is not a heartbeat, or how the
// socket ended.
func (s *rawSocket) firstAnswer() string {
	f, end := s.readUntil(func(f *receivedFrame) bool { return f.Type != "heartbeat" })
	return end + f.Type
}

// answer returns the answer to the frame with ref x, or to one that could not be parsed:
// its type or the code of its error, or how the socket ended.
func (s *rawSocket) answer() string {
	f, end := s.readUntil(func(f *receivedFrame) bool { return f.Ref == "x" || f.Type == "error" && f.Ref == "" })
	if f.Type == "error" && end == "" {
		return "error " + f.Code
	}
	if end != "" {
		return end
	}
	return f.Type
}

// stillWorks checks the socket by a request that is always refused with the same error.
func (s *rawSocket) stillWorks() string {
	s.send(`{"type":"leave","room":"never-joined","ref":"x"}`)
	if got := s.answer(); got != "error invalid" {
		return got
	}
	return "still works"
}
