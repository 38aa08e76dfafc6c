package http

import (
	"testing"
	"time"
)

func TestGarbageIsCollectedOnceAfterAHandshakeBurst(t *testing.T) {
	var w handshakeBurst
	now, total := time.Unix(0, 0), int64(0)
	check := func(handshakes int64) bool {
		now, total = now.Add(burstCheckInterval), total+handshakes
		return w.hasEnded(now, total)
	}
	steps := []struct {
		handshakes int64
		over       bool
	}{
		{100, false}, {5, false}, // a few are no burst
		{900, false}, {2000, false}, {3000, false}, // the burst grows
		{150, true}, // the burst is over
		{0, false}, {999, false}, {0, false},
		{1, true}, // a thousand came slowly
		{0, false},
	}
	for i, s := range steps {
		if over := check(s.handshakes); over != s.over {
			t.Errorf("step %d, %d handshakes: over %v", i, s.handshakes, over)
		}
	}
	if w.hasEnded(now.Add(burstCheckInterval/2), total+5000) {
		t.Error("hasEnded returned true within the interval")
	}
}
