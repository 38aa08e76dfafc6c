package conn

import (
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/ratelimit"
)

func TestReadingIsThrottledOverTheRates(t *testing.T) {
	frames, bytes := ratelimit.Limit{PerSecond: 100, Burst: 205}, ratelimit.PerSecond(2000)
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
				h := throttle{began: began, frames: frames, bytes: bytes}
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
	new(throttle).pause(1<<30, 1<<30) // no limits
}
