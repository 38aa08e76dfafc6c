package testkit

import (
	"context"
	"testing"
	"time"
)

// Timeout bounds every wait of a test for something that is certain to happen:
// long enough for the busiest machine, since a test that passes never waits for
// the end of it.
const Timeout = time.Minute

// pollInterval is how often Eventually looks.
const pollInterval = 5 * time.Millisecond

// Eventually waits until ok returns true, and fails the test with what was
// awaited when that takes longer than Timeout. It may be used in a bubble of
// testing/synctest.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	if !poll(Timeout, ok) {
		tb.Fatalf("not within %v: %s", Timeout, what)
	}
}

// EventuallyNil waits until check returns nil, and fails the test with its last
// error when that takes longer than Timeout.
func EventuallyNil(tb testing.TB, what string, check func() error) {
	tb.Helper()
	var err error
	if !poll(Timeout, func() bool { err = check(); return err == nil }) {
		tb.Fatalf("not within %v: %s: %v", Timeout, what, err)
	}
}

func poll(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); !ok(); <-time.After(pollInterval) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Within returns a context that ends after d, or when the test and its cleanups
// are over.
func Within(tb testing.TB, d time.Duration) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}
