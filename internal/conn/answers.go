package conn

import (
	"context"
	"fmt"

	"switchyard/internal/protocol"
)

// Answered waits until the last answer to a read has left, so that a client that takes
// nothing causes one at most. It implements hub.Outlet. One goroutine calls it at a time: the
// reader, which reads no other request meanwhile.
func (c *Conn) Answered(ctx context.Context) error {
	c.mu.Lock()
	if c.answerLeft() {
		c.mu.Unlock()
		return nil
	}
	answered := make(chan struct{})
	c.answered = answered
	c.mu.Unlock()
	select {
	case <-answered: // bounded by the write deadline
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a client to take an answer: %w", ctx.Err())
	}
}

// SendAnswer is Send for the answer to a read. It implements hub.Outlet.
func (c *Conn) SendAnswer(f protocol.Frame) bool {
	ok := c.Send(f)
	c.mu.Lock()
	c.lastAnswer = c.sentBytes.Load()
	c.mu.Unlock()
	return ok
}

// notifyAnswered wakes the caller of Answered when the last answer has left. Caller
// holds mu.
func (c *Conn) notifyAnswered() {
	if c.answered != nil && c.answerLeft() {
		close(c.answered)
		c.answered = nil
	}
}

// answerLeft reports whether the last answer to a read is written, or dropped. Caller
// holds mu.
func (c *Conn) answerLeft() bool {
	return c.ending || c.sentBytes.Load()-int64(c.queue.bytes) >= c.lastAnswer
}
