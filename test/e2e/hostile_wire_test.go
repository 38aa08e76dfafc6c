package e2e

import (
	"strings"
)

// wireAttacks break RFC 6455.
func wireAttacks() (all []attack) {
	whole := `{"type":"signal","room":"own.a","data":"` + strings.Repeat("*", 200) + `"}`
	for _, row := range []struct{ name, sends, want string }{
		{"a frame comes without a mask", "\x81\x05hello", "close 1002"},
		{"a ping comes without a mask", "\x89\x00", "close 1002"},
		{"the first reserved bit is set, as if compression had been agreed", masked(textFrame|0x40, whole), "close 1002"},
		{"the second reserved bit is set", masked(textFrame|0x20, whole), "close 1002"},
		{"the third reserved bit is set", masked(textFrame|0x10, whole), "close 1002"},
		{"a reserved bit of a close is set", masked(closeFrame|0x40, "\x03\xe8"), "close 1002"},
		{"a frame has a reserved opcode", masked(0x83, "x"), "close 1002"},
		{"a control frame has a reserved opcode", masked(0x8B, "x"), "close 1002"},
		{"a ping comes in fragments", masked(0x09, "pi") + masked(lastText, "ng"), "close 1002"},
		{"a close comes in fragments", masked(0x08, "\x03") + masked(lastText, "\xe8"), "close 1002"},
		{"a ping is longer than a control frame may be", masked(pingFrame, strings.Repeat("p", 126)), "close 1002"},
		{"a continuation continues nothing", masked(lastText, whole), "close 1002"},
		{"a text begins within a text", masked(beginText, whole[:50]) + masked(textFrame, whole), "close 1002"},
		{"a close has one byte", masked(closeFrame, "\x03"), "close 1002"},
		{"a close says 1005, which nobody may send", masked(closeFrame, "\x03\xed"), "close 1002"},
		{"a close says 1006, which nobody may send", masked(closeFrame, "\x03\xee"), "close 1002"},
		{"a close says 999", masked(closeFrame, "\x03\xe7"), "close 1002"},
		{"a close says 65535", masked(closeFrame, "\xff\xff"), "close 1002"},
		{"a close gives a reason that is not UTF-8", masked(closeFrame, "\x03\xe8\xff\xfe"), "close 1007"},
		{"a text is not UTF-8", masked(textFrame, `{"type":"signal","room":"own.a","data":"`+"\xc0\xaf"+`"}`), "close 1007"},
		{"a text has a surrogate", masked(textFrame, `{"type":"signal","room":"own.a","data":"`+"\xed\xa0\x80"+`"}`), "close 1007"},
		{"a text is cut within a character", masked(textFrame, "\xce"), "close 1007"},
		{"a frame is binary", masked(binaryFrame, whole), "close 1003"},
		{"a frame says that it is longer than any number", "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", "close 1002"},
		{"a text is a byte over the bound", masked(textFrame, strings.Repeat(" ", 65537)), "close 1009"},
		{"fragments are together over the bound", masked(beginText, strings.Repeat(" ", 40000)) + masked(lastText, strings.Repeat(" ", 40000)), "close 1009"},
		{"a thousand empty fragments come before the text ends", masked(beginText, "") + strings.Repeat(masked(moreText, ""), 1000) + masked(lastText, whole), "goes on"},
		{"two hundred pongs come that nobody asked for", strings.Repeat(masked(0x8A, "12345678"), 200), "goes on"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			w := a.own()
			_, _ = w.Write([]byte(row.sends))
			if row.want != "goes on" {
				return w.answer()
			}
			return w.goesOn()
		}})
	}
	return append(all, behindTheClose, handshakeCarriesFrames)
}

// What is sent after a close is not done: the message is not in the room.
var behindTheClose = attack{"a publish stands behind the close", "close 1000, 0 messages", func(a *attacker) string {
	room := "own." + a.user
	w := a.own()
	_, _ = w.Write([]byte(masked(closeFrame, "\x03\xe8") + masked(textFrame, `{"type":"publish","room":"`+room+`","data":1}`)))
	return w.answer() + ", " + a.own().count(room)
}}

// A proxy that thinks the handshake was refused would let its next request
// pass: it is read as frames.
var handshakeCarriesFrames = attack{"a request hides behind a handshake", "close 1002", func(a *attacker) string {
	w, refused := a.open(upgrade("Authorization: Bearer "+tokenOf(a.user, nil)) + request("GET /v1/rooms", "", "Authorization: Bearer "+shopKey))
	if refused != "" {
		return refused
	}
	return w.answer()
}}

// handshakeAttacks are handshakes that are none.
func handshakeAttacks() (all []attack) {
	good := upgrade()
	for _, row := range []struct{ name, sends, want string }{
		{"a handshake has no key", strings.Replace(good, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 1), "400 bad_handshake"},
		{"a handshake has a key of the wrong length", strings.Replace(good, "dGhlIHNhbXBsZSBub25jZQ==", "dGhl", 1), "400 bad_handshake"},
		{"a handshake has two keys", upgrade("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), "400 bad_handshake"},
		{"a handshake is of another version", strings.Replace(good, "Version: 13", "Version: 8", 1), "400 bad_handshake"},
		{"a handshake is a POST", strings.Replace(good, "GET", "POST", 1), "405 method_not_allowed"},
		{"a handshake speaks HTTP/1.0", strings.Replace(good, "HTTP/1.1", "HTTP/1.0", 1), "426 upgrade_required"},
		{"a handshake does not ask for an upgrade", request("GET /ws", ""), "426 upgrade_required"},
		{"a handshake asks for HTTP/2", request("GET /ws", "", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), "426 upgrade_required"},
		{"a handshake has a body", upgrade("Content-Length: 5") + "hello", "400 invalid"},
		{"a handshake has a body in pieces", upgrade("Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n", "400 invalid"},
		{"a handshake offers a session that is no secret", upgrade("Switchyard-Session: ../../etc/passwd"), "400 invalid"},
		{"a handshake offers two sessions", upgrade("Switchyard-Session: a", "Switchyard-Session: b"), "400 invalid"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			_, refused := a.open(row.sends)
			return refused
		}})
	}
	return all
}
