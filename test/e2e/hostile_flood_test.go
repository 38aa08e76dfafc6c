package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"switchyard/internal/testkit"
)

// floodAttacks send more than is allowed of what is allowed. They run one after the
// other, so that each has the service for itself.
func floodAttacks() []attack {
	return append(connectionFloods(), frameFloods()...)
}

// connectionFloods open more connections than are allowed.
func connectionFloods() []attack {
	return []attack{
		{"thousands of silent connections are opened", "answered afterwards", func(a *attacker) string {
			a.tryMany(2200, 16, func(int) string { a.dial(); return "" })
			a.closeAll()
			return a.answeredAfterwards()
		}},
		{"one address opens more sockets than its share", "40 welcome, 12 close 4103", func(a *attacker) string {
			return a.tryMany(52, 4, func(i int) string {
				return a.tryHandshakeFrom("127.0.0.1", upgradeRequest("Authorization: Bearer "+tokenOf(fmt.Sprint(a.user, "-", i), nil), forwardedFor("198.51.100.9")))
			})
		}},
		{"an address opens more sockets by naming others before its own", "40 welcome, 5 close 4103", func(a *attacker) string {
			return a.tryMany(45, 4, func(i int) string {
				return a.tryHandshakeFrom("127.0.0.1", upgradeRequest("Authorization: Bearer "+tokenOf(fmt.Sprint(a.user, "-", i), nil),
					forwardedFor(fmt.Sprintf("203.0.113.%d, 198.51.100.10", i))))
			})
		}},
		{"one IPv6 network opens more sockets with a new address for each", "40 welcome, 5 close 4103", func(a *attacker) string {
			return a.tryMany(45, 4, func(i int) string {
				return a.tryHandshakeFrom("127.0.0.1", upgradeRequest("Authorization: Bearer "+tokenOf(fmt.Sprint(a.user, "-", i), nil),
					forwardedFor(fmt.Sprintf("2001:db8:0:7::%x", i))))
			})
		}},
		{"one user opens more sockets than its share", "8 welcome, 4 close 4103", func(a *attacker) string {
			return a.tryMany(12, 4, func(int) string {
				return a.tryHandshake(upgradeRequest("Authorization: Bearer " + tokenOf(a.user, nil)))
			})
		}},
		{"sockets are opened until the node is full", "full, and admitted afterwards", func(a *attacker) string {
			got := a.tryMany(220, 8, func(i int) string {
				return a.tryHandshakeFrom("127.0.0.1", upgradeRequest("Authorization: Bearer "+tokenOf(fmt.Sprint(a.user, "-", i), nil),
					forwardedFor(fmt.Sprintf("198.51.100.%d", i))))
			})
			a.closeAll()
			if after := a.connectsAfterwards(); !strings.HasSuffix(got, "close 4103") || after != "admitted" {
				return got + ", " + after
			}
			return "full, and admitted afterwards"
		}},
		{"hundreds of handshakes end before they are answered", "admitted", func(a *attacker) string {
			a.tryMany(500, 8, func(int) string {
				c := a.dial()
				_, _ = io.WriteString(c, upgradeRequest("Authorization: Bearer "+tokenOf(a.user, nil)))
				_ = c.(*net.TCPConn).SetLinger(0) // a reset
				_ = c.Close()
				return ""
			})
			return a.connectsAfterwards()
		}},
	}
}

// frameFloods send more frames than are allowed.
func frameFloods() []attack {
	refusedAndEnded := func(frame string) func(a *attacker) string {
		return func(a *attacker) string {
			w := a.connectAsOwnUser()
			go w.send(strings.Split(strings.Repeat(frame+"\n", 2000), "\n")[:2000]...)
			_, end := w.readUntil(func(*receivedFrame) bool { return false })
			return end
		}
	}
	return []attack{
		{"thousands of joins are sent", "close 4129", refusedAndEnded(`{"type":"join","room":"own.a"}`)},
		{"thousands of publishes are sent", "close 4129", refusedAndEnded(`{"type":"publish","room":"own.flood","data":1}`)},
		{"thousands of tokens are sent", "close 4129", refusedAndEnded(`{"type":"auth","token":"a.b.c"}`)},
		{"thousands of history requests are sent", "close 4129", refusedAndEnded(`{"type":"history","room":"own.a"}`)},
		{"thousands of frames of an unknown type are sent", "close 4129", refusedAndEnded(`{"type":"x"}`)},
		{"a user exceeds the limit of publishes over several connections", "error rate_limited", func(a *attacker) string {
			first, second := a.connectAsOwnUser(), a.connectAsOwnUser()
			for _, w := range []*rawSocket{first, second} {
				go w.send(strings.Split(strings.Repeat(`{"type":"signal","ref":"x","room":"own.a","data":1}`+"\n", 300), "\n")[:300]...)
			}
			return second.answer()
		}},
		{"a socket joins more rooms than are allowed", "error too_many_rooms", func(a *attacker) string {
			w := a.connectAsOwnUser()
			for i := 0; ; i++ {
				w.send(fmt.Sprintf(`{"type":"join","ref":"x","room":"own.%d"}`, i))
				if got := w.answer(); got != "joined" && got != "error rate_limited" {
					return got
				}
			}
		}},
		{"thousands of pings are sent", "still works", func(a *attacker) string {
			_, _ = io.WriteString(a.connectAsOwnUser(), strings.Repeat(testkit.MaskedFrame(pingFrame, "ping"), 5000))
			return a.connectAsOwnUser().stillWorks() // the other socket is read more slowly
		}},
		{"thousands of calls are made with one API key", "429 rate_limited", func(a *attacker) string {
			c := a.dial()
			go a.drip(c, strings.Repeat("POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nAuthorization: Bearer "+drumKey+"\r\nContent-Length: 1\r\n\r\nx", 2000), "")
			br := bufio.NewReader(c)
			for range 2000 {
				if got := readStatus(br); got != "400 malformed" {
					return got
				}
			}
			return "all answered"
		}},
	}
}

// tryMany calls try n times, up to atOnce at a time, and counts the answers, "welcome"
// first.
func (a *attacker) tryMany(n, atOnce int, try func(i int) string) string {
	counts := map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		all.Go(func() {
			for i := range next {
				got := a.catchAborted(func() string { return try(i) })
				mu.Lock()
				counts[got]++
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	summary := fmt.Sprint(counts["welcome"], " welcome")
	delete(counts, "welcome")
	for got, count := range counts {
		summary += fmt.Sprint(", ", count, " ", got)
	}
	return summary
}

// catchAborted returns the answer of try, or why it was aborted.
func (a *attacker) catchAborted(try func() string) (got string) {
	defer func() {
		if why, ok := recover().(attackAborted); ok {
			got = string(why)
		}
	}()
	return try()
}

// connectsAfterwards connects as another user, until the service has noticed which
// connections have ended.
func (a *attacker) connectsAfterwards() string {
	for {
		got := a.tryHandshake(upgradeRequest("Authorization: Bearer " + tokenOf("bystander-of-"+a.user, nil)))
		if got == "welcome" {
			return "admitted"
		}
		if got != "cut" && got != "close 4103" {
			return got
		}
		a.pause(50 * time.Millisecond)
	}
}

// answeredAfterwards makes a request, until the service has noticed which connections
// have ended.
func (a *attacker) answeredAfterwards() string {
	for {
		got := a.catchAborted(func() string { return a.roundTrip(request("GET /", "")) })
		if got == "200" {
			return "answered afterwards"
		}
		if got != "cut" {
			return got
		}
		a.pause(50 * time.Millisecond)
	}
}
