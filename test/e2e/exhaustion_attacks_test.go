package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/testkit"
)

// A stranger opens connections and sends requests. It is safe for concurrent use.
type stranger struct {
	node         *exhaustionNode
	lasts        time.Duration // of the attack
	opened, sent atomic.Int64

	mu    sync.Mutex // Protects following.
	conns []net.Conn
}

func (s *stranger) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
}

// dial opens a connection, which closeAll closes.
func (s *stranger) dial() (net.Conn, error) {
	c, err := net.Dial("tcp", s.node.Addr)
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return c, nil
}

// connect opens a WebSocket with a token, from an address. It returns nil if it is refused.
func (s *stranger) connect(token, address string) (net.Conn, *bufio.Reader) {
	c, err := s.dial()
	if err != nil {
		return nil, nil
	}
	_, _ = io.WriteString(c, strings.Replace(upgradeRequest("Authorization: Bearer "+token, forwardedFor(address)), "chat.example.com", s.node.Addr, 1))
	r := bufio.NewReader(c)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	res, err := http.ReadResponse(r, nil)
	_ = c.SetReadDeadline(time.Time{})
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		_ = c.Close()
		return nil, nil
	}
	return c, r
}

// send sends a frame, and reports whether it could.
func (s *stranger) send(c io.Writer, frame string) bool {
	s.sent.Add(1)
	_, err := io.WriteString(c, testkit.MaskedFrame(textFrame, frame))
	return err == nil
}

// times calls f at once for 0 to n·share-1, and waits for all.
func times(n int, share float64, f func(i int)) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range max(1, int(float64(n)*share)) {
		all.Go(func() { f(i) })
	}
}

// loopUntil calls f until it returns false or ctx ends.
func loopUntil(ctx context.Context, f func(i int) bool) {
	for i := 0; ctx.Err() == nil && f(i); i++ {
	}
}

// pause waits a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// comeBack calls f again and again, about every twelfth of the attack. Not all do so at once,
// because the machine measures, too.
func (s *stranger) comeBack(ctx context.Context, f func()) {
	every := s.lasts / 12
	pause(ctx, rand.N(every))
	loopUntil(ctx, func(int) bool {
		f()
		pause(ctx, every*4/5+rand.N(every*2/5))
		return true
	})
}

// stuckReaders are 1,200 sockets of twelve users that ask for history and read nothing.
// They come back when they are closed.
func stuckReaders(ctx context.Context, s *stranger, share float64) {
	ask := strings.Repeat(testkit.MaskedFrame(textFrame, `{"type":"history","room":"archive","ref":"1"}`), 30)
	times(1200, share, func(i int) {
		token := userToken(fmt.Sprint("stranger-", i%12))
		s.comeBack(ctx, func() {
			if c, _ := s.connect(token, fmt.Sprint("203.0.113.", i%12)); c != nil {
				s.sent.Add(30)
				_, _ = io.WriteString(c, ask)
			}
		})
	})
}

// joinReplays are twenty sockets of one user that join a large room from its beginning,
// leave it and join it again.
func joinReplays(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(20, max(share, 0.25), func(i int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 10*time.Millisecond)
			return s.send(c, `{"type":"join","room":"archive","after":0}`) && s.send(c, `{"type":"leave","room":"archive"}`)
		})
	})
}

// historyCalls are a hundred sockets of one user that ask for history again and again.
func historyCalls(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(100, share, func(i int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 50*time.Millisecond)
			return s.send(c, `{"type":"history","room":"archive","ref":"1"}`)
		})
	})
}

// idleConnections are more connections than a node keeps that are no WebSockets. Each has
// made one request, so that it is kept alive.
func idleConnections(ctx context.Context, s *stranger, share float64) {
	times(40, 1, func(int) {
		loopUntil(ctx, func(i int) bool {
			c, err := s.dial()
			if err == nil && i%2 == 0 {
				s.sent.Add(1)
				_, _ = io.WriteString(c, "GET /no-such-page HTTP/1.1\r\nHost: "+s.node.Addr+"\r\n\r\n")
			}
			if i >= int(100*max(share, 0.6)) {
				pause(ctx, time.Second)
			}
			return i < 300
		})
	})
}

// junkTokens are handshakes of eight strangers of one address with tokens whose signature
// is wrong.
func junkTokens(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	token = token[:len(token)-4] + "AAAA"
	times(8, share, func(int) {
		loopUntil(ctx, func(int) bool {
			s.sent.Add(1)
			if c, _ := s.connect(token, "203.0.113.1"); c != nil {
				_ = c.Close()
			}
			return true
		})
	})
}

// roomJoins are a hundred sockets of one user that join one room after the other.
func roomJoins(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(100, share, func(socket int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(i int) bool {
			pause(ctx, 10*time.Millisecond)
			return s.send(c, fmt.Sprintf(`{"type":"join","room":"r-%d-%d","ref":"1"}`, socket, i%5000)) &&
				(i < 900 || s.send(c, fmt.Sprintf(`{"type":"leave","room":"r-%d-%d"}`, socket, (i-900)%5000)))
		})
	})
}

// controlFrames are a hundred sockets of one user that send what costs little: pongs, empty
// fragments and refused publishes.
func controlFrames(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	frames := strings.Repeat(testkit.MaskedFrame(0x8A, "x"), 20) + testkit.MaskedFrame(0x01, "") +
		strings.Repeat(testkit.MaskedFrame(0x00, ""), 18) + testkit.MaskedFrame(0x80, `{"type":"leave"}`) +
		strings.Repeat(testkit.MaskedFrame(textFrame, `{"type":"signal","room":"x","data":1}`), 20)
	times(100, share, func(int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 20*time.Millisecond)
			s.sent.Add(60)
			_, err := io.WriteString(c, frames)
			return err == nil
		})
	})
}

// reconnects are connections of one user that are opened and closed again.
func reconnects(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(8, share, func(i int) {
		loopUntil(ctx, func(n int) bool {
			if c, _ := s.connect(token, fmt.Sprintf("203.0.%d.%d", i, n%250)); c != nil {
				_ = c.Close()
			}
			return true
		})
	})
}

// unfinishedFrames are 1,200 sockets that send most of a large frame, and no more.
func unfinishedFrames(ctx context.Context, s *stranger, share float64) {
	frame := testkit.MaskedFrame(textFrame, `{"type":"publish","room":"a","data":"`+strings.Repeat("x", 60<<10)+`"}`)
	times(1200, share, func(i int) {
		token := userToken(fmt.Sprint("stranger-", i%12))
		s.comeBack(ctx, func() {
			if c, _ := s.connect(token, fmt.Sprint("203.0.113.", i%12)); c != nil {
				s.sent.Add(1)
				_, _ = io.WriteString(c, frame[:59<<10])
			}
		})
	})
}
