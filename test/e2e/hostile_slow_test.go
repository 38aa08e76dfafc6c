package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// slowAttacks take their time, to hold what they were given for as long as they
// like. What ends them is a bound of the service's, from 5 to 15 s, so they all
// go on at once.
func slowAttacks() []attack {
	return []attack{
		{"a request never ends its head", "cut within 5s", func(a *attacker) string {
			return a.drips("GET / HTTP/1.1\r\nHost: chat.example.com\r\nX-Slow: ", "a", 5*time.Second)
		}},
		{"a connection never says a word", "cut within 5s", func(a *attacker) string { return a.drips("", "", 5*time.Second) }},
		{"a line ends never", "cut within 5s", func(a *attacker) string { return a.drips("G", "E", 5*time.Second) }},
		{"a body comes a byte at a time", "cut within 15s", func(a *attacker) string {
			return a.drips("POST /v1/rooms/own.a/messages HTTP/1.1\r\nHost: chat.example.com\r\nAuthorization: Bearer "+shopKey+"\r\nContent-Length: 60000\r\n\r\n{", " ", 15*time.Second)
		}},
		{"a body that nobody waits for never comes", "401 unauthorized", func(a *attacker) string {
			return a.ask("POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nContent-Length: 1000000\r\n\r\n[")
		}},
		{"a handshake has a body that never comes", "cut within 15s", func(a *attacker) string {
			return a.drips(upgrade("Content-Length: 1000"), " ", 15*time.Second)
		}},
		{"answers are asked for and not read", "cut", func(a *attacker) string { return a.readsNothing() }},
		{"a socket sends half a frame and no more", "close 4209", func(a *attacker) string {
			w := a.own()
			_, _ = io.WriteString(w, masked(textFrame, `{"type":"leave","room":"own.a"}`)[:20])
			return w.answer()
		}},
		{"a socket sends a frame that never ends, a byte at a time", "close 4209", func(a *attacker) string {
			w := a.own()
			go a.dripInto(w, masked(textFrame, strings.Repeat(" ", 65000))[:8], "\x5a")
			return w.answer()
		}},
		{"a socket sends fragments that never end, with pings between", "close 4209", func(a *attacker) string {
			w := a.own()
			go a.dripInto(w, masked(beginText, "{"), masked(moreText, " ")+masked(pingFrame, "p"))
			return w.answer()
		}},
		{"a socket promises a frame of exabytes", "close 4209", func(a *attacker) string {
			w := a.own()
			_, _ = io.WriteString(w, "\x81\xff\x3f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00{")
			return w.answer()
		}},
		{"a socket answers no ping", "close 4209", func(a *attacker) string { return a.own().answer() }},
		{"a socket does not answer the close", "close 1008, cut", func(a *attacker) string {
			w := a.own()
			w.say("<", "<", "<")
			never := func(*heard) bool { return false }
			_, end := w.until(never)
			_, after := w.until(never)
			return end + ", " + after
		}},
		{"a socket reads nothing while messages come", "cut", func(a *attacker) string { return a.listensNot() }},
	}
}

// drips sends a beginning and then a piece again and again, and says whether it
// was cut off within a time. Four times as long is still in time: the machine
// may be busy.
func (a *attacker) drips(begin, piece string, within time.Duration) string {
	c := a.dial()
	began := time.Now()
	go a.dripInto(c, begin, piece)
	_, err := io.Copy(io.Discard, c)
	if took := time.Since(began); ended(err) == "silence" || took > 4*within || took < within/2 {
		return fmt.Sprint(ended(err), " after ", took)
	}
	return fmt.Sprint("cut within ", within)
}

// dripInto sends a piece each 100 ms until the connection ends, and returns how;
// nil where the attack's time is over first.
func (a *attacker) dripInto(c io.Writer, begin, piece string) error {
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

// readsNothing asks for the client's file again and again, and looks at no
// answer.
func (a *attacker) readsNothing() string {
	const asks = "GET /client.js HTTP/1.1\r\nHost: chat.example.com\r\n\r\n"
	return a.untilCut(a.dial(), strings.Repeat(asks, 3000), "G")
}

// untilCut sends and reads nothing until the other side has closed.
func (a *attacker) untilCut(c io.Writer, begin, piece string) string {
	if err := a.dripInto(c, begin, piece); err == nil || ended(err) != "cut" {
		return "still open"
	}
	return "cut"
}

// listensNot joins a room and reads no more, while 8 MB come. It is told 4208,
// and cut off since it does not take that either.
func (a *attacker) listensNot() string {
	w := a.own()
	_ = w.Conn.(*net.TCPConn).SetReadBuffer(16 << 10)
	w.say(`{"type":"join","ref":"x","room":"own.slow"}`)
	if got := w.answer(); got != "joined" {
		return got
	}
	signal := `{"type":"signal","room":"own.slow","data":"` + strings.Repeat("*", 60000) + `"}`
	for i := range 4 {
		other := a.enter(tokenOf(fmt.Sprint(a.user, "-", i), nil))
		for range 34 { // what one connection may send at once
			other.say(signal)
		}
		if got := other.goesOn(); got != "goes on" {
			return got
		}
	}
	return a.untilCut(w, "", masked(pingFrame, "p"))
}
