package http

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/testkit"
)

func TestReadingIsThrottledOverTheRates(t *testing.T) {
	rates := &Rates{Publish: 20, Bytes: 1000, Join: 20, History: 10}
	for name, tt := range map[string]struct {
		frames, bytes, pings, times int
		want                        time.Duration
	}{
		"a burst":                    {10, 100, 1, 20, 0},
		"frames without a payload":   {10, 60, 0, 100, 8 * time.Second},       // 1,000, of which 205 at once and 100 a second
		"bytes":                      {1, 1000, 0, 20, 8 * time.Second},       // 20,000, of which 4,000 at once and 2,000 a second
		"pings":                      {1, 6, 1, 150, 5 * time.Second},         // 150, of which 100 at once and 10 a second
		"one large read":             {1, 64 << 10, 0, 2, 2 * time.Second},    // counts as the burst
		"a slow one for a long time": {1, 10, 0, 10_000, 9_795 * time.Second}, // never waits for the throttle
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				h := newThrottle(rates, 5, func() time.Duration { return time.Since(began) })
				for range tt.times {
					if name == "a slow one for a long time" {
						time.Sleep(979500 * time.Microsecond)
					}
					if tt.pings > 0 {
						h.pausePing()
					}
					h.pause(tt.frames, tt.bytes)
				}
				took := time.Since(began)
				if took < tt.want-200*time.Millisecond || took > tt.want+200*time.Millisecond {
					t.Errorf("took %v, want %v", took, tt.want)
				}
			})
		})
	}
	var none *throttle
	none.pause(1<<30, 1<<30)
	none.pausePing()
	newThrottle(&Rates{Publish: 1}, 0, func() time.Duration { return 0 }).pause(1<<30, 1<<30) // one rate is unlimited
}

// Pings over their rate are answered later, in order, and the connection stays
// open. Other frames wait behind them.
func TestAFloodOfPingsIsAnsweredAtALimitedRate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.Rates = Rates{Publish: 100, Bytes: 1 << 20, Join: 100, History: 10} })
		var flood strings.Builder
		const pings = 115
		for i := range pings {
			flood.WriteString(testkit.MaskedFrame(0x89, fmt.Sprintf("%03d", i)))
		}
		began := time.Now()
		_, br := n.rawHandshake(flood.String() + testkit.MaskedFrame(0x81, `{"type":"join","room":"after"}`))
		for i := range pings {
			op, payload := readFrame(t, br)
			for op != 0x8A { // skips the welcome, heartbeats and the service's pings
				op, payload = readFrame(t, br)
			}
			if payload != fmt.Sprintf("%03d", i) {
				t.Fatalf("answer %d is %q", i, payload)
			}
		}
		if took := time.Since(began); took < time.Second {
			t.Errorf("%d pings were answered in %v, want at least a second", pings, took)
		}
		for {
			if _, payload := readFrame(t, br); strings.Contains(payload, `"joined"`) {
				break
			}
		}
	})
}

// readFrame reads one frame of the service.
func readFrame(t *testing.T, br *bufio.Reader) (op byte, payload string) {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		t.Fatal(err)
	}
	size := uint64(head[1])
	if size > 125 {
		long := make([]byte, map[uint64]int{126: 2, 127: 8}[size])
		if _, err := io.ReadFull(br, long); err != nil {
			t.Fatal(err)
		}
		size = 0
		for _, b := range long {
			size = size<<8 | uint64(b)
		}
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(br, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}
