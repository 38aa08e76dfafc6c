package http

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// One user or address can't use up the node with frames that cost little each, on however
// many connections, be they requests, refused ones, or frames of the protocol below. They are
// read later, and nobody else waits.
func TestFramesOfAReaderArePaced(t *testing.T) {
	leave := testkit.MaskedFrame(0x81, `{"type":"leave","room":"a"}`)
	for name, tt := range map[string]struct {
		frame             string
		ofUser            bool
		perSecond, atOnce int // docs/limits.md
	}{
		"requests":           {leave, false, 400, 10_000},
		"requests of a user": {leave, true, 200, 5_000},
		"bad requests":       {testkit.MaskedFrame(0x81, `{"type":"leave"}`), false, 400, 10_000},
		"refused":            {testkit.MaskedFrame(0x81, `{"type":"signal","room":"a","data":1}`), false, 400, 10_000},
		"control frames":     {testkit.MaskedFrame(0x8A, "pong"), false, 400, 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				change := func(c *Config) {
					trustLoopback(c)
					c.Rates.Publish, c.MaxPerUser, c.MaxPerAddress = 1, 100, 1000
				}
				n, from, options := (*node)(nil), "X-Forwarded-For: 198.51.100.1", fromAddress("198.51.100.2")
				if tt.ofUser {
					n = startKeyedNode(t, "", change)
					from = "Authorization: Bearer " + tokenOf("ann", time.Hour, everyRoom)
					options = withToken(tokenOf("bob", time.Hour, everyRoom))
				} else {
					n = startNode(t, change)
				}
				other := n.dial(options)
				began := time.Now()
				const connections = 20
				var all sync.WaitGroup
				for range connections {
					flood := strings.Repeat(tt.frame, (tt.atOnce+5*tt.perSecond)/connections) + testkit.MaskedFrame(0x81, `{"type":"ping"}`)
					_, r := n.rawHandshake(flood, from)
					all.Go(func() {
						for payload := ""; !strings.Contains(payload, `"pong"`); {
							_, payload = readFrame(t, r)
						}
					})
				}
				all.Wait()
				if took := time.Since(began); took < 3*time.Second || took > 6*time.Second { // the last ones are counted later
					t.Errorf("%d frames were read in %v, want about 5s", tt.atOnce+5*tt.perSecond, took)
				}
				began = time.Now()
				other.send(`{"type":"join","room":"a"}`)
				if other.until("joined"); time.Since(began) > 0 {
					t.Errorf("another reader waited %v", time.Since(began))
				}
			})
		})
	}
}

// What a user or an address owes delays a frame, and a handshake that resumes rooms, by five
// seconds at most, since a wait does not notice that the client has gone. Such a handshake is
// refused where it would have to wait longer.
func TestAWaitForFramesIsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startSessionNode(t, func(c *Config) {
			trustLoopback(c)
			c.MaxPerUser, c.MaxPerAddress = 100, 1000
		})
		const address, perSecond, atOnce = "198.51.100.1", 400, 10_000
		const most = 5 * time.Second // docs/limits.md
		b := n.dial(fromAddress(address))
		n.addressFrames.Reserve("a:"+address+"/32", n.cfg.now(), atOnce+60*perSecond)
		began := time.Now()
		for range pacedAtOnce + 1 {
			b.send(`{"type":"ping"}`)
		}
		for range pacedAtOnce + 1 {
			b.until("pong")
		}
		if took := time.Since(began); took != most {
			t.Errorf("frames waited for %v, want %v", took, most)
		}
		resume := []string{"X-Forwarded-For: " + address, "Sec-WebSocket-Protocol: switchyard.v1, session.unknown"}
		if got := n.handshakeStatusAt("/ws?rooms=1", resume...); got != http.StatusTooManyRequests {
			t.Errorf("a resume that would wait for nearly a minute: %d", got)
		}
		time.Sleep(51 * time.Second)
		began = time.Now()
		if got := n.handshakeStatusAt("/ws?rooms=1", resume...); got != http.StatusSwitchingProtocols || time.Since(began) < 3*time.Second || time.Since(began) > most {
			t.Errorf("a resume that is to wait for some seconds: %d after %v", got, time.Since(began))
		}
	})
}
