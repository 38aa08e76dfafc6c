package testkit

import (
	"os"
	"testing"
)

// ReadFile returns the content of a file.
func ReadFile(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// CopyFile copies a file. An existing one is overwritten in place, as cp does, so that
// it keeps its inode.
func CopyFile(tb testing.TB, from, to string) {
	tb.Helper()
	if err := os.WriteFile(to, ReadFile(tb, from), 0o644); err != nil {
		tb.Fatal(err)
	}
}
