package testkit

import (
	"context"
	"testing"
	"time"
)

// Timeout bounds how long a test waits for something that is certain to happen. It
// is long enough for the busiest machine, since a test that passes never waits
// that long.
const Timeout = time.Minute

// pollInterval is how often Eventually checks.
const pollInterval = 5 * time.Millisecond

// Eventually waits until ok returns true. After Timeout it fails the test with
// what, the condition in words. It works in a bubble of testing/synctest.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	if !poll(Timeout, ok) {
		tb.Fatalf("not within %v: %s", Timeout, what)
	}
}

// EventuallyNil waits until check returns nil. After Timeout it fails the test with
// what and the last error.
func EventuallyNil(tb testing.TB, what string, check func() error) {
	tb.Helper()
	var err error
	if !poll(Timeout, func() bool { err = check(); return err == nil }) {
		tb.Fatalf("not within %v: %s: %v", Timeout, what, err)
	}
}

// poll reports whether ok returned true within limit.
func poll(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); !ok(); <-time.After(pollInterval) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Within returns a context that ends after d, or with the cleanups of the test.
func Within(tb testing.TB, d time.Duration) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

// Receive returns the next value of a channel. After Timeout it fails the test with
// what, the value in words. A closed channel has a value at once.
func Receive[T any](tb testing.TB, what string, from <-chan T) (v T) {
	tb.Helper()
	select {
	case v = <-from:
	case <-time.After(Timeout):
		tb.Fatalf("not within %v: %s", Timeout, what)
	}
	return v
}
