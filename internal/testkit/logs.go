package testkit

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// Logs keeps what a logger writes, for a test to read while it is written. The
// zero value is ready; it is safe for concurrent use.
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

// String returns all that was written.
func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Count returns how often text was written.
func (l *Logs) Count(text string) int { return strings.Count(l.String(), text) }

// Logger returns a logger that writes text lines of every level into l.
func (l *Logs) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
