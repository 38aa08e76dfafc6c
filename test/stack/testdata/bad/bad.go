// The defects of bad versions. test/stack adds this file to internal/store when it builds
// one (bad_versions_test.go). No other build has it.
package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"switchyard/internal/message"
)

// The build sets both. defect is ready, errors, slow, leak or crash. defectAfter is the
// time from the start until a leak or a crash begins.
var defect, defectAfter string

func init() {
	if len(os.Args) > 1 && os.Args[1] != "serve" {
		return
	}
	after, err := time.ParseDuration(defectAfter)
	if err != nil {
		panic(err)
	}
	switch defect {
	case "leak":
		time.AfterFunc(after, leak)
	case "crash":
		time.AfterFunc(after, func() { panic("a bug in this version") })
	}
}

// leak allocates 8 MiB ten times a second, up to 960 MiB, outside of Go's heap.
func leak() {
	for range 120 {
		held, err := syscall.Mmap(-1, 0, 8<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			panic(err)
		}
		for i := 0; i < len(held); i += 4096 {
			held[i] = 1
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// failed completes one in ten publications with an error that the log never returns, and
// says whether it did. It spares the rooms of probes, so that a smoke test does not see
// the bug.
func failed(c *committer, p *message.Publication) bool {
	if defect != "errors" || !strings.HasPrefix(string(p.Room), "talk") || rand.N(10) > 0 {
		return false
	}
	w := c.workerFor(p.Room)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse(p, errors.New("a bug in this version"), reasonClosed)
	return true
}

// notReady keeps a version from becoming ready.
func notReady() error {
	if defect == "ready" {
		return errors.New("a bug in this version")
	}
	return nil
}

// commitSlowly commits in five times the usual time, in 60 ms at least.
func commitSlowly(ctx context.Context, w *appendWorker, queued []*queuedPublication) (message.Epoch, []result, error) {
	began := time.Now()
	epoch, results, err := w.writer.commit(ctx, queued)
	if defect == "slow" {
		time.Sleep(max(4*time.Since(began), 60*time.Millisecond))
	}
	return epoch, results, err
}
