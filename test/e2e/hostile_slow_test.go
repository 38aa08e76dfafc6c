package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"switchyard/internal/testkit"
)

// slowAttacks send and read slowly, to keep the service's resources. A timeout of the
// service ends them after 5 to 15 s, so that all of them run at once. The short form
// has those that end within 12 s.
func slowAttacks() []attack {
	all := []attack{
		{"a request's head never ends", "cut within 5s", func(a *attacker) string {
			return a.dripUntilCut("GET / HTTP/1.1\r\nHost: chat.example.com\r\nX-Slow: ", "a", 5*time.Second)
		}},
		{"a connection sends nothing", "cut within 5s", func(a *attacker) string { return a.dripUntilCut("", "", 5*time.Second) }},
		{"a request line never ends", "cut within 5s", func(a *attacker) string { return a.dripUntilCut("G", "E", 5*time.Second) }},
		{"the body of an unauthorized request never comes", "401 unauthorized", func(a *attacker) string {
			return a.roundTrip("POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nContent-Length: 1000000\r\n\r\n[")
		}},
		{"a handshake has a body that never comes", "400 invalid", func(a *attacker) string {
			return a.roundTrip(upgradeRequest("Content-Length: 1000"))
		}},
		{"a handshake has a body that comes a byte at a time", "400 invalid", func(a *attacker) string {
			c := a.dial()
			go a.drip(c, upgradeRequest("Content-Length: 1000"), " ")
			return readStatus(bufio.NewReader(c))
		}},
		{"a socket sends half a frame and no more", "close 4209", func(a *attacker) string {
			w := a.connectAsOwnUser()
			_, _ = io.WriteString(w, testkit.MaskedFrame(textFrame, `{"type":"leave","room":"own.a"}`)[:20])
			return w.answer()
		}},
		{"a socket sends a frame that never ends, a byte at a time", "close 4209", func(a *attacker) string {
			w := a.connectAsOwnUser()
			go a.drip(w, testkit.MaskedFrame(textFrame, strings.Repeat(" ", 65000))[:8], "\x5a")
			return w.answer()
		}},
		{"a socket sends fragments that never end, with pings between", "close 4209", func(a *attacker) string {
			w := a.connectAsOwnUser()
			go a.drip(w, testkit.MaskedFrame(firstFragment, "{"), testkit.MaskedFrame(middleFragment, " ")+testkit.MaskedFrame(pingFrame, "p"))
			return w.answer()
		}},
		{"a socket announces a frame of exabytes", "close 4209", func(a *attacker) string {
			w := a.connectAsOwnUser()
			_, _ = io.WriteString(w, "\x81\xff\x3f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00{")
			return w.answer()
		}},
		{"a socket answers no ping", "close 4209", func(a *attacker) string { return a.connectAsOwnUser().answer() }},
		{"a socket does not answer the close", "close 1008, cut", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send("<", "<", "<")
			never := func(*receivedFrame) bool { return false }
			_, end := w.readUntil(never)
			_, after := w.readUntil(never)
			return end + ", " + after
		}},
		{"a socket reads nothing while messages come", "cut", func(a *attacker) string { return a.joinWithoutReading() }},
	}
	if *longFaults {
		all = append(all, slowestAttacks()...)
	}
	return all
}

// slowestAttacks are ended after 15 s.
func slowestAttacks() []attack {
	return []attack{
		{"a body comes a byte at a time", "cut within 15s", func(a *attacker) string {
			return a.dripUntilCut("POST /v1/rooms/own.a/messages HTTP/1.1\r\nHost: chat.example.com\r\nAuthorization: Bearer "+shopKey+"\r\nContent-Length: 60000\r\n\r\n{", " ", 15*time.Second)
		}},
		{"responses are requested and not read", "cut", func(a *attacker) string { return a.requestWithoutReading() }},
	}
}

// dripUntilCut sends begin, repeats piece, and reports whether the connection was
// closed after about the time within: between half of it and four times as long passes,
// since the machine may be busy.
func (a *attacker) dripUntilCut(begin, piece string, within time.Duration) string {
	c := a.dial()
	began := time.Now()
	go a.drip(c, begin, piece)
	_, err := io.Copy(io.Discard, c)
	if took := time.Since(began); connectionEnd(err) == "silence" || took > 4*within || took < within/2 {
		return fmt.Sprint(connectionEnd(err), " after ", took)
	}
	return fmt.Sprint("cut within ", within)
}

// drip sends begin, and then piece each 100 ms until the connection ends. It returns the
// error of the connection, or nil when the attack's time is over first.
func (a *attacker) drip(c io.Writer, begin, piece string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	_, err := io.WriteString(c, begin)
	for err == nil && piece != "" {
		select {
		case <-tick.C:
			_, err = io.WriteString(c, piece)
		case <-a.ctx.Done():
			return nil
		}
	}
	return err
}

// requestWithoutReading requests a file again and again, and reads no response.
func (a *attacker) requestWithoutReading() string {
	const get = "GET /client.js HTTP/1.1\r\nHost: chat.example.com\r\n\r\n"
	return a.writeUntilCut(a.dial(), strings.Repeat(get, 3000), "G")
}

// writeUntilCut sends, and reads nothing, until the server has closed the connection.
func (a *attacker) writeUntilCut(c io.Writer, begin, piece string) string {
	if err := a.drip(c, begin, piece); err == nil || connectionEnd(err) != "cut" {
		return "still open"
	}
	return "cut"
}

// joinWithoutReading joins a room and reads nothing more, while 8 MB are sent to it. The
// server closes with 4208, and then cuts the connection, since that is not read either.
func (a *attacker) joinWithoutReading() string {
	w := a.connectAsOwnUser()
	_ = w.Conn.(*net.TCPConn).SetReadBuffer(16 << 10)
	w.send(`{"type":"join","ref":"x","room":"own.slow"}`)
	if got := w.answer(); got != "joined" {
		return got
	}
	signal := `{"type":"signal","room":"own.slow","data":"` + strings.Repeat("*", 60000) + `"}`
	for i := range 4 {
		other := a.connectWithToken(tokenOf(fmt.Sprint(a.user, "-", i), nil))
		for range 34 { // as much as one connection may send at once
			other.send(signal)
		}
		if got := other.stillWorks(); got != "still works" {
			return got
		}
	}
	return a.writeUntilCut(w, "", testkit.MaskedFrame(pingFrame, "p"))
}
