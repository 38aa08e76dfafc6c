package http

import (
	"context"
	"log/slog"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// How many refusals a second are logged. A stranger decides how many there are, and the
// writer of a log line is waited for.
const (
	refusalLinesPerSecond = 10
	refusalLinesAtOnce    = 100
)

// A refusalLog logs requests that fail for a reason of ours. What is over its bound is
// counted, and named by the next line: metrics have the exact numbers. It is safe for
// concurrent use.
type refusalLog struct {
	log     *slog.Logger
	limiter *rate.Limiter
	leftOut atomic.Int64
}

func newRefusalLog(log *slog.Logger) *refusalLog {
	return &refusalLog{log: log, limiter: rate.NewLimiter(refusalLinesPerSecond, refusalLinesAtOnce)}
}

// record logs a line like slog.Logger.Log. Lines of the level debug, which an operator has
// asked for, are not bounded.
func (l *refusalLog) record(ctx context.Context, level slog.Level, text string, args ...any) {
	if level > slog.LevelDebug {
		if !l.limiter.Allow() {
			l.leftOut.Add(1)
			return
		}
		if n := l.leftOut.Swap(0); n > 0 {
			args = append(args, "left_out", n)
		}
	}
	l.log.Log(ctx, level, text, args...)
}
