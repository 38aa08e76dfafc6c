package testkit

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// Logs keeps the output of a logger, which a test can read at any time. The zero
// value is ready for use. It is safe for concurrent use.
type Logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// String returns everything that was written.
func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Count returns how often text occurs in the output.
func (l *Logs) Count(text string) int { return strings.Count(l.String(), text) }

// Logger returns a logger that writes lines of every level into l, in the format of
// slog.TextHandler.
func (l *Logs) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
