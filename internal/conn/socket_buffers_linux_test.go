package conn

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel keeps little of what a client does not take, beside what is on its way.
func TestTheKernelKeepsLittle(t *testing.T) {
	server, _ := tcpEnds(t)
	LimitBuffers(server)
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	_ = raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
	if err != nil || got != 32<<10 { // docs/limits.md
		t.Errorf("TCP_NOTSENT_LOWAT is %d, %v", got, err)
	}
	_ = raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	if err != nil || got != 256<<10 { // docs/limits.md
		t.Errorf("SO_RCVBUF is %d, %v", got, err)
	}
}

// BenchmarkUnsentLimit measures what a client that reads gets, and how many bytes the
// kernel has accepted for one that does not, by the limit.
func BenchmarkUnsentLimit(b *testing.B) {
	const page = 64 << 10
	frame := bigMessage(1, page)
	for _, limit := range []int{unsentLimit / 2, unsentLimit, 4 * unsentLimit, 1 << 30} {
		pair := func(b *testing.B) (*Conn, net.Conn) {
			b.Helper()
			server, client := tcpEnds(b)
			c := New(server, nil, Options{QueueBytes: 1 << 30, Budget: NewBudget(1 << 40), Tick: new(atomic.Int64)})
			raw, err := server.SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, limit)
			})
			return c, client
		}
		b.Run(fmt.Sprintf("read/%d", limit>>10), func(b *testing.B) {
			c, client := pair(b)
			b.SetBytes(int64(len(frame)))
			go func() {
				for range b.N {
					c.Send(frame)
					_ = c.Flushed(b.Context())
				}
			}()
			if _, err := io.CopyN(io.Discard, client, int64(b.N*len(frame))); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(fmt.Sprintf("unread/%d", limit>>10), func(b *testing.B) {
			for b.Loop() {
				c, _ := pair(b)
				for c.SentBytes() < 16<<20 {
					c.Send(frame)
				}
				c.mu.Lock()
				b.ReportMetric(float64(c.sentBytes.Load()-int64(c.queue.bytes))/1024, "KiB-in-the-kernel")
				c.mu.Unlock()
				c.Abort()
			}
		})
	}
}
