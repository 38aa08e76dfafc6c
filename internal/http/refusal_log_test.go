package http

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/testkit"
)

func TestLogLinesOfRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond, atOnce = 10, 100 // docs/limits.md
		var out testkit.Logs
		l := newRefusalLog(out.Logger())
		lines := func() int { return strings.Count(out.String(), "\n") }
		for range 5 * atOnce {
			l.record(t.Context(), slog.LevelWarn, "request refused")
		}
		if got := lines(); got != atOnce {
			t.Errorf("%d lines at once, want %d", got, atOnce)
		}
		<-time.After(time.Second)
		for range 5 * perSecond {
			l.record(t.Context(), slog.LevelError, "request failed")
		}
		if got := lines(); got != atOnce+perSecond {
			t.Errorf("%d lines after a second, want %d more", got, perSecond)
		}
		if got := strings.Count(out.String(), "left_out=400"); got != 1 {
			t.Errorf("%d lines name the 400 that were left out:\n%s", got, out.String())
		}
	})
}
