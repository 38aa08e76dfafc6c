package e2e

import (
	"strings"

	"switchyard/internal/testkit"
)

// framingAttacks break RFC 6455.
func framingAttacks() (all []attack) {
	whole := `{"type":"signal","room":"own.a","data":"` + strings.Repeat("*", 200) + `"}`
	for _, row := range []struct{ name, sends, want string }{
		{"a frame comes without a mask", "\x81\x05hello", "close 1002"},
		{"a ping comes without a mask", "\x89\x00", "close 1002"},
		{"the first reserved bit is set, as if compression had been agreed", testkit.MaskedFrame(textFrame|0x40, whole), "close 1002"},
		{"the second reserved bit is set", testkit.MaskedFrame(textFrame|0x20, whole), "close 1002"},
		{"the third reserved bit is set", testkit.MaskedFrame(textFrame|0x10, whole), "close 1002"},
		{"a reserved bit of a close is set", testkit.MaskedFrame(closeFrame|0x40, "\x03\xe8"), "close 1002"},
		{"a frame has a reserved opcode", testkit.MaskedFrame(0x83, "x"), "close 1002"},
		{"a control frame has a reserved opcode", testkit.MaskedFrame(0x8B, "x"), "close 1002"},
		{"a ping comes in fragments", testkit.MaskedFrame(0x09, "pi") + testkit.MaskedFrame(lastFragment, "ng"), "close 1002"},
		{"a close comes in fragments", testkit.MaskedFrame(0x08, "\x03") + testkit.MaskedFrame(lastFragment, "\xe8"), "close 1002"},
		{"a ping is longer than a control frame may be", testkit.MaskedFrame(pingFrame, strings.Repeat("p", 126)), "close 1002"},
		{"a continuation continues nothing", testkit.MaskedFrame(lastFragment, whole), "close 1002"},
		{"a text begins within a text", testkit.MaskedFrame(firstFragment, whole[:50]) + testkit.MaskedFrame(textFrame, whole), "close 1002"},
		{"a close has one byte", testkit.MaskedFrame(closeFrame, "\x03"), "close 1002"},
		{"a close has the code 1005, which is reserved", testkit.MaskedFrame(closeFrame, "\x03\xed"), "close 1002"},
		{"a close has the code 1006, which is reserved", testkit.MaskedFrame(closeFrame, "\x03\xee"), "close 1002"},
		{"a close has the code 999", testkit.MaskedFrame(closeFrame, "\x03\xe7"), "close 1002"},
		{"a close has the code 65535", testkit.MaskedFrame(closeFrame, "\xff\xff"), "close 1002"},
		{"a close gives a reason that is not UTF-8", testkit.MaskedFrame(closeFrame, "\x03\xe8\xff\xfe"), "close 1007"},
		{"a text is not UTF-8", testkit.MaskedFrame(textFrame, `{"type":"signal","room":"own.a","data":"`+"\xc0\xaf"+`"}`), "close 1007"},
		{"a text has a surrogate", testkit.MaskedFrame(textFrame, `{"type":"signal","room":"own.a","data":"`+"\xed\xa0\x80"+`"}`), "close 1007"},
		{"a text is cut within a character", testkit.MaskedFrame(textFrame, "\xce"), "close 1007"},
		{"a frame is binary", testkit.MaskedFrame(binaryFrame, whole), "close 1003"},
		{"a frame announces the largest possible length", "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", "close 1002"},
		{"a text is a byte over the limit", testkit.MaskedFrame(textFrame, strings.Repeat(" ", 65537)), "close 1009"},
		{"fragments are together over the limit", testkit.MaskedFrame(firstFragment, strings.Repeat(" ", 40000)) + testkit.MaskedFrame(lastFragment, strings.Repeat(" ", 40000)), "close 1009"},
		{"a thousand empty fragments come before the text ends", testkit.MaskedFrame(firstFragment, "") + strings.Repeat(testkit.MaskedFrame(middleFragment, ""), 1000) + testkit.MaskedFrame(lastFragment, whole), "still works"},
		{"two hundred unsolicited pongs come", strings.Repeat(testkit.MaskedFrame(0x8A, "12345678"), 200), "still works"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			w := a.connectAsOwnUser()
			_, _ = w.Write([]byte(row.sends))
			if row.want != "still works" {
				return w.answer()
			}
			return w.stillWorks()
		}})
	}
	return append(all, publishAfterClose, requestBehindHandshake)
}

// A publish that is sent after a close has no effect: the message is not in the room.
var publishAfterClose = attack{"a publish is sent after the close", "close 1000, 0 messages", func(a *attacker) string {
	room := "own." + a.user
	w := a.connectAsOwnUser()
	_, _ = w.Write([]byte(testkit.MaskedFrame(closeFrame, "\x03\xe8") + testkit.MaskedFrame(textFrame, `{"type":"publish","room":"`+room+`","data":1}`)))
	return w.answer() + ", " + a.connectAsOwnUser().messageCount(room)
}}

// A proxy that believes the handshake was refused forwards the next request, which the
// server reads as frames.
var requestBehindHandshake = attack{"a request is sent behind a handshake", "close 1002", func(a *attacker) string {
	w, refused := a.open(upgradeRequest("Authorization: Bearer "+tokenOf(a.user, nil)) + request("GET /v1/rooms", "", "Authorization: Bearer "+shopKey))
	if refused != "" {
		return refused
	}
	return w.answer()
}}

// handshakeAttacks are invalid handshakes.
func handshakeAttacks() (all []attack) {
	good := upgradeRequest()
	for _, row := range []struct{ name, sends, want string }{
		{"a handshake has no key", strings.Replace(good, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 1), "400 bad_handshake"},
		{"a handshake has a key of the wrong length", strings.Replace(good, "dGhlIHNhbXBsZSBub25jZQ==", "dGhl", 1), "400 bad_handshake"},
		{"a handshake has two keys", upgradeRequest("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), "400 bad_handshake"},
		{"a handshake is of another version", strings.Replace(good, "Version: 13", "Version: 8", 1), "400 bad_handshake"},
		{"a handshake is a POST", strings.Replace(good, "GET", "POST", 1), "405 method_not_allowed"},
		{"a handshake speaks HTTP/1.0", strings.Replace(good, "HTTP/1.1", "HTTP/1.0", 1), "426 upgrade_required"},
		{"a handshake does not ask for an upgrade", request("GET /ws", ""), "426 upgrade_required"},
		{"a handshake asks for HTTP/2", request("GET /ws", "", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), "426 upgrade_required"},
		{"a handshake has a body", upgradeRequest("Content-Length: 5") + "hello", "400 invalid"},
		{"a handshake has a chunked body", upgradeRequest("Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n", "400 invalid"},
		{"a handshake offers a session in a wrong format", upgradeRequest("Switchyard-Session: ../../etc/passwd"), "400 invalid"},
		{"a handshake offers two sessions", upgradeRequest("Switchyard-Session: a", "Switchyard-Session: b"), "400 invalid"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			_, refused := a.open(row.sends)
			return refused
		}})
	}
	return all
}
