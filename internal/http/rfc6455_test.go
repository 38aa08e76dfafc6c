package http

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// The cases of the Autobahn test suite that a server decides, by their numbers.
// docs/autobahn.md lists them with the answers. A case sends bytes, and says
// whether the connection stays open or closes with a code.

const staysOpen = 0 // it answers a frame after the case

const (
	frameText, frameBinary, framePing, framePong, frameClose = 0x81, 0x82, 0x89, 0x8A, 0x88
	fragmentFirst, fragmentNext, fragmentLast                = 0x01, 0x00, 0x80 // of a text in fragments
)

func closeFrame(code int, reason string) string {
	return testkit.MaskedFrame(frameClose, string([]byte{byte(code >> 8), byte(code)})+reason)
}

// signalOf returns a signal of a size. The service does not answer it.
func signalOf(size int) string {
	head := `{"type":"signal","room":"a","data":"`
	return head + strings.Repeat("*", max(0, size-len(head)-2)) + `"}`
}

func fragments(payload string, size int) string {
	var b strings.Builder
	for first := byte(fragmentFirst); ; first = fragmentNext {
		n := min(size, len(payload))
		if n == len(payload) {
			b.WriteString(testkit.MaskedFrame(first|0x80, payload))
			return b.String()
		}
		b.WriteString(testkit.MaskedFrame(first, payload[:n]))
		payload = payload[n:]
	}
}

type autobahnCase struct {
	number, name string
	sends        string
	want         int
}

func autobahn() (all []autobahnCase) {
	add := func(number, name, sends string, want int) {
		all = append(all, autobahnCase{number, name, sends, want})
	}
	// Group 1: framing.
	add("1.1.1", "an empty text", testkit.MaskedFrame(frameText, ""), staysOpen) // not JSON: malformed
	for i, size := range []int{125, 126, 127, 128, 65535, 65536} {
		add(fmt.Sprint("1.1.", i+2), fmt.Sprint("a text of ", size), testkit.MaskedFrame(frameText, signalOf(size)), staysOpen)
	}
	add("1.1.8", "a text of 65,536 in pieces of 997 on the wire", testkit.MaskedFrame(frameText, signalOf(65536)), staysOpen)
	for i, size := range []int{0, 125, 126, 65536} {
		add(fmt.Sprint("1.2.", i+1), fmt.Sprint("binary of ", size), testkit.MaskedFrame(frameBinary, strings.Repeat("\xfe", size)), 1003)
	}
	// Group 2: pings and pongs.
	add("2.1", "a ping without a payload", testkit.MaskedFrame(framePing, ""), staysOpen)
	add("2.2", "a ping with text", testkit.MaskedFrame(framePing, "Hello"), staysOpen)
	add("2.3", "a ping with bytes", testkit.MaskedFrame(framePing, "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), staysOpen)
	add("2.4", "a ping of 125", testkit.MaskedFrame(framePing, strings.Repeat("\xfe", 125)), staysOpen)
	add("2.5", "a ping of 126", testkit.MaskedFrame(framePing, strings.Repeat("\xfe", 126)), 1002)
	add("2.7", "an unsolicited pong", testkit.MaskedFrame(framePong, ""), staysOpen)
	add("2.8", "the same with a payload", testkit.MaskedFrame(framePong, "unsolicited"), staysOpen)
	add("2.9", "pong, ping, pong", testkit.MaskedFrame(framePong, "x")+testkit.MaskedFrame(framePing, "ping")+testkit.MaskedFrame(framePong, ""), staysOpen)
	add("2.10", "ten pings", strings.Repeat(testkit.MaskedFrame(framePing, "ten"), 10), staysOpen)
	// Group 3: reserved bits.
	for i, bits := range []byte{0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70} {
		add(fmt.Sprint("3.", i+1), fmt.Sprintf("reserved bits %x", bits>>4), testkit.MaskedFrame(frameText|bits, signalOf(100)), 1002)
	}
	add("3.8", "reserved bits of a ping", testkit.MaskedFrame(framePing|0x40, "x"), 1002)
	// Group 4: reserved opcodes.
	for i, op := range []byte{3, 4, 5, 6, 7} {
		add(fmt.Sprint("4.1.", i+1), fmt.Sprint("opcode ", op), testkit.MaskedFrame(frameText, signalOf(90))+testkit.MaskedFrame(0x80|op, ""), 1002)
	}
	for i, op := range []byte{11, 12, 13, 14, 15} {
		add(fmt.Sprint("4.2.", i+1), fmt.Sprint("opcode ", op), testkit.MaskedFrame(0x80|op, "x"), 1002)
	}
	// Group 5: fragments.
	frame := signalOf(200)
	add("5.1", "a ping in two fragments", testkit.MaskedFrame(0x09, "frag")+testkit.MaskedFrame(fragmentLast, "ment"), 1002)
	add("5.2", "a pong in two fragments", testkit.MaskedFrame(0x0A, "frag")+testkit.MaskedFrame(fragmentLast, "ment"), 1002)
	add("5.3", "a text in two fragments", testkit.MaskedFrame(fragmentFirst, frame[:60])+testkit.MaskedFrame(fragmentLast, frame[60:]), staysOpen)
	add("5.6", "a ping between fragments", testkit.MaskedFrame(fragmentFirst, frame[:60])+testkit.MaskedFrame(framePing, "between")+testkit.MaskedFrame(fragmentLast, frame[60:]), staysOpen)
	add("5.9", "a continuation of nothing", testkit.MaskedFrame(fragmentLast, "none"), 1002)
	add("5.12", "a continuation of nothing, not the last", testkit.MaskedFrame(fragmentNext, "none"), 1002)
	add("5.15", "a continuation after the last", testkit.MaskedFrame(fragmentFirst, frame[:60])+testkit.MaskedFrame(fragmentLast, frame[60:])+testkit.MaskedFrame(fragmentNext, "x"), 1002)
	add("5.18", "a text within a text", testkit.MaskedFrame(fragmentFirst, frame[:60])+testkit.MaskedFrame(frameText, frame), 1002)
	add("5.19", "fragments with pings between", testkit.MaskedFrame(fragmentFirst, frame[:20])+testkit.MaskedFrame(fragmentNext, frame[20:40])+testkit.MaskedFrame(framePing, "1")+
		testkit.MaskedFrame(fragmentNext, frame[40:60])+testkit.MaskedFrame(framePing, "2")+testkit.MaskedFrame(fragmentLast, frame[60:]), staysOpen)
	add("5.20", "empty fragments", testkit.MaskedFrame(fragmentFirst, "")+strings.Repeat(testkit.MaskedFrame(fragmentNext, ""), 50)+testkit.MaskedFrame(fragmentLast, frame), staysOpen)
	return append(all, autobahnTexts()...)
}

// autobahnTexts returns group 6: text that is UTF-8 or not.
func autobahnTexts() (all []autobahnCase) {
	const head, tail = `{"type":"signal","room":"a","data":"`, `"}`
	for number, s := range map[string]string{
		"6.2.1": "Hello-µ@ßöäüàá-UTF-8!!", "6.6.11": "κόσμε", "6.7.1": "\x00", "6.7.2": "\u0080", "6.7.3": "\u0800", "6.7.4": "\U00010000",
		"6.9.1": "\u007f", "6.9.2": "\u07ff", "6.9.3": "\uffff", "6.9.4": "\U0010ffff", "6.11.1": "\ud7ff", "6.11.2": "\ue000",
		"6.11.3": "\ufffd", "6.11.4": "\U0010ffff", "6.22.1": "\ufffe", "6.23.1": "\ufffd", "6.1.1": "",
	} {
		all = append(all, autobahnCase{number, fmt.Sprintf("%+q", s), testkit.MaskedFrame(frameText, head+s+tail), staysOpen})
	}
	for number, s := range map[string]string{
		"6.3.1": "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", "6.8.1": "\xf8\x88\x80\x80\x80", "6.8.2": "\xfc\x84\x80\x80\x80\x80",
		"6.10.1": "\xf7\xbf\xbf\xbf", "6.10.2": "\xfb\xbf\xbf\xbf\xbf", "6.10.3": "\xfd\xbf\xbf\xbf\xbf\xbf", "6.11.5": "\xf4\x90\x80\x80",
		"6.12.1": "\x80", "6.12.2": "\xbf", "6.12.3": "\x80\xbf", "6.13.1": "\xc0 \xc1 ", "6.13.2": "\xe0 \xe1 ", "6.13.3": "\xf0 \xf1 ",
		"6.14.1": "\xc0", "6.14.2": "\xe0\x80", "6.14.3": "\xf0\x80\x80", "6.15.1": "\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80",
		"6.16.1": "\xfe", "6.16.2": "\xff", "6.17.1": "\xc0\xaf", "6.17.2": "\xe0\x80\xaf", "6.17.3": "\xf0\x80\x80\xaf", "6.18.1": "\xc1\xbf",
		"6.19.1": "\xc0\x80", "6.19.2": "\xe0\x80\x80", "6.20.1": "\xed\xa0\x80", "6.20.2": "\xed\xad\xbf", "6.20.7": "\xed\xbf\xbf",
		"6.21.1": "\xed\xa0\x80\xed\xb0\x80", "6.21.8": "\xed\xaf\xbf\xed\xbf\xbf",
	} {
		all = append(all,
			autobahnCase{number, fmt.Sprintf("%+q", s), testkit.MaskedFrame(frameText, head+s+tail), 1007},
			autobahnCase{number, fmt.Sprintf("%+q in fragments of a byte", s), fragments(head+s+tail, 1), 1007})
	}
	whole := head + "κόσμε" + tail
	return append(all,
		autobahnCase{"6.2.2", "a character over two fragments", testkit.MaskedFrame(fragmentFirst, whole[:len(head)+1]) + testkit.MaskedFrame(fragmentLast, whole[len(head)+1:]), staysOpen},
		autobahnCase{"6.2.3", "a byte a fragment", fragments(whole, 1), staysOpen},
		// An earlier close would be allowed, too. This service closes at the end of
		// the text.
		autobahnCase{"6.4.1", "bad text, and its end", testkit.MaskedFrame(fragmentFirst, head+"\xf4\x90") + testkit.MaskedFrame(fragmentNext, "\x80\x80") + testkit.MaskedFrame(fragmentLast, tail), 1007},
		autobahnCase{"6.5.1", "text that ends within a character", testkit.MaskedFrame(frameText, head+"\xce"), 1007})
}

// autobahnCloses returns group 7, which the service answers with a close frame.
func autobahnCloses() (all []autobahnCase) {
	add := func(number, name, sends string, want int) {
		all = append(all, autobahnCase{number, name, sends, want})
	}
	add("7.1.1", "a text and a close", testkit.MaskedFrame(frameText, signalOf(90))+closeFrame(1000, ""), 1000)
	add("7.1.2", "two closes", closeFrame(1000, "")+closeFrame(1000, ""), 1000)
	add("7.1.3", "a close and a ping", closeFrame(1000, "")+testkit.MaskedFrame(framePing, ""), 1000)
	add("7.1.4", "a close and a text", closeFrame(1000, "")+testkit.MaskedFrame(frameText, signalOf(90)), 1000)
	add("7.1.5", "a close within a text", testkit.MaskedFrame(fragmentFirst, "{")+closeFrame(1000, "")+testkit.MaskedFrame(fragmentLast, "}"), 1000)
	add("7.3.1", "a close without a payload", testkit.MaskedFrame(frameClose, ""), 1005)
	add("7.3.2", "a close of one byte", testkit.MaskedFrame(frameClose, "a"), 1002)
	add("7.3.3", "a close with a code", closeFrame(1000, ""), 1000)
	add("7.3.4", "a close with a reason", closeFrame(1000, "Hello"), 1000)
	add("7.3.5", "a close with a reason of 123", closeFrame(1000, strings.Repeat("*", 123)), 1000)
	add("7.3.6", "a close of 126", closeFrame(1000, strings.Repeat("*", 124)), 1002)
	add("7.5.1", "a reason that is no text", closeFrame(1000, "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"), 1007)
	add("7.5.1", "the same with another code", closeFrame(3000, "\xff"), 1007)
	for i, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		add(fmt.Sprint("7.7.", i+1), fmt.Sprint("close ", code), closeFrame(code, ""), code)
	}
	for i, code := range []int{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		add(fmt.Sprint("7.9.", i+1), fmt.Sprint("close ", code), closeFrame(code, ""), 1002)
	}
	add("7.13.1", "close 5000", closeFrame(5000, ""), 1002)
	add("7.13.2", "close 65535", closeFrame(65535, ""), 1002)
	return all
}

func TestAutobahnCases(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxFrame = 65536 })
	cases := append(autobahn(), autobahnCloses()...)
	cases = append(cases, autobahnCase{"10.1.1", "65,536 bytes in fragments of 1,300", fragments(signalOf(65536), 1300), staysOpen})
	for _, tt := range cases {
		t.Run(tt.number+" "+tt.name, func(t *testing.T) {
			n.t = t
			after := testkit.MaskedFrame(frameText, `{"type":"leave","ref":"after","room":"none"}`)
			if tt.want != staysOpen {
				after = ""
			}
			c, br := n.rawHandshake("")
			writeCase(t, c, tt.sends+after, tt.number)
			got, pongs := readOutcome(t, br)
			if got != tt.want {
				t.Errorf("closed with %d, want %d (0: it stays open)", got, tt.want)
			}
			if tt.want == staysOpen && strings.HasPrefix(tt.number, "2.") && len(pongs) != pingsIn(tt.sends) {
				t.Errorf("%d pongs %q, want %d", len(pongs), pongs, pingsIn(tt.sends))
			}
		})
	}
}

// pingsIn counts the pings of a case of group 2, whose frames are whole.
func pingsIn(sends string) (n int) {
	for len(sends) > 0 {
		if sends[0] == framePing {
			n++
		}
		sends = sends[6+int(sends[1]&0x7f):]
	}
	return n
}

// writeCase writes a case, some cases in pieces as a network would.
func writeCase(t *testing.T, c net.Conn, s, number string) {
	t.Helper()
	piece := len(s)
	if number == "1.1.8" || number == "2.10" {
		piece = 997
	}
	if number == "2.2" || number == "5.19" {
		piece = 1
	}
	for len(s) > 0 {
		n := min(piece, len(s))
		if _, err := c.Write([]byte(s[:n])); err != nil {
			return // it was closed: readOutcome sees the code
		}
		s = s[n:]
	}
}

// readOutcome reads up to the answer of the last frame, or to the close.
func readOutcome(t *testing.T, br *bufio.Reader) (code int, pongs []string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		op, payload := readFrame(t, br)
		switch {
		case op == frameClose && payload == "":
			return int(websocket.StatusNoStatusRcvd), pongs
		case op == frameClose:
			return int(binary.BigEndian.Uint16([]byte(payload))), pongs
		case op == framePong:
			pongs = append(pongs, payload)
		case op == frameText && strings.Contains(payload, `"ref":"after"`):
			return staysOpen, pongs
		}
	}
	t.Fatal("no answer")
	return 0, nil
}
