// What is wrong with a bad version: this file is laid over internal/store when
// test/stack builds one (deploy_images_test.go), and is in no other build. badness
// says which bug it has.
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

// badness is set by the build: ready, errors, slow, leak or crash. badAfter is how
// long after its start a version shows what is wrong with it, if it can wait.
var badness, badAfter string

func init() {
	if len(os.Args) > 1 && os.Args[1] != "serve" {
		return
	}
	after, err := time.ParseDuration(badAfter)
	if err != nil {
		panic(err)
	}
	switch badness {
	case "leak":
		time.AfterFunc(after, leak)
	case "crash":
		time.AfterFunc(after, func() { panic("a bug that takes its time") })
	}
}

// leak holds 8 MiB more ten times a second, up to 960 MiB, out of the collector's
// sight.
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

// spoiled settles one in ten publications with an error that the log never gives,
// in the rooms of the clients and not in those of probes: a bug that a smoke test
// does not see.
func spoiled(k *committer, p *message.Publication) bool {
	if badness != "errors" || !strings.HasPrefix(string(p.Room), "talk") || rand.N(10) > 0 {
		return false
	}
	w := k.workerFor(p.Room)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse(p, errors.New("a bug in this version"), reasonClosed)
	return true
}

// unwell keeps a version from getting ready.
func unwell() error {
	if badness == "ready" {
		return errors.New("a bug in this version")
	}
	return nil
}

// dawdled commits, and takes five times as long as it would, 60 ms at least.
func dawdled(ctx context.Context, w *appendWorker, queued []*queuedPublication) (message.Epoch, []result, error) {
	began := time.Now()
	epoch, results, err := w.writer.commit(ctx, queued)
	if badness == "slow" {
		time.Sleep(max(4*time.Since(began), 60*time.Millisecond))
	}
	return epoch, results, err
}
