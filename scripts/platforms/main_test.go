package main

import (
	"os/exec"
	"testing"
)

// The service compiles with its unit tests on systems that differ in what these three
// differ: 32 bits, a Unix other than Linux, and Windows. The operator's tool manages the
// containers of the host that it is on, which is Linux. The command runs as a process of
// its own, because the race detector makes checking types six times slower.
func TestTheServiceCompilesOnEverySystem(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./scripts/platforms",
		"linux/386=./cmd/...", "darwin/arm64=./cmd/server", "windows/amd64=./cmd/server")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
