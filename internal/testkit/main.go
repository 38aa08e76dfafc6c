package testkit

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main is called by TestMain. It runs the tests, stops every process that the kit
// started, removes its directories, fails the run when a goroutine is left, and
// exits.
func Main(m *testing.M, opts ...goleak.Option) {
	code := m.Run()
	if err := resources.close(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		code = 1
	}
	// A test that failed has often not cleaned up, and its own message says more.
	if code == 0 {
		if err := findLeak(opts...); err != nil {
			fmt.Fprintln(os.Stderr, "testkit: goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// MainParallel is Main for tests that mostly wait: n of them run at a time, however few
// cores there are, unless -parallel says otherwise.
func MainParallel(m *testing.M, n int, opts ...goleak.Option) {
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err)
	}
	Main(m, opts...)
}

// findLeak returns the goroutines that are left after ten seconds: libraries
// let go of a connection to a dead server only when its dial times out.
func findLeak(opts ...goleak.Option) (err error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if err = goleak.Find(opts...); err == nil {
			return nil
		}
	}
	return err
}

// TempDir makes a directory that Main removes. It belongs to owner, or to the user
// of the test if owner is nil.
func TempDir(name string, owner *User) (string, error) {
	root, err := resources.rootDir()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(root, name+"-")
	if err != nil {
		return "", fmt.Errorf("make a directory for %s: %w", name, err)
	}
	if owner != nil {
		if err := own(dir, owner); err != nil {
			return "", fmt.Errorf("give the directory of %s to its user: %w", name, err)
		}
	}
	return dir, nil
}

const (
	rootPrefix = "switchyard-test-"
	lockName   = "lock"
)

// resources has everything that this test binary has started. It is a package
// variable because Main must clean up for all tests.
var resources = &resourceRegistry{processes: map[*Process]bool{}}

// A resourceRegistry has the running processes and the root directory of a test
// binary. It is safe for concurrent use.
type resourceRegistry struct {
	mu        sync.Mutex // Protects following.
	starter   *starter   // nil before the first process
	processes map[*Process]bool
	root      string   // empty before the first directory
	lock      *os.File // locked while root is in use
	closers   []func() error
}

// start starts a process from the starter's thread and registers it.
func (r *resourceRegistry) start(p *Process) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starter == nil {
		r.starter = newStarter()
	}
	if err := r.starter.start(p.cmd); err != nil {
		return err
	}
	r.processes[p] = true
	go p.waitLoop()
	return nil
}

// remove removes a process that has ended.
func (r *resourceRegistry) remove(p *Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.processes, p)
}

// onClose has Main call stop before it kills the remaining processes.
func (r *resourceRegistry) onClose(stop func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closers = append(r.closers, stop)
}

// close stops all processes and removes all directories. It may be called when
// nothing was started.
func (r *resourceRegistry) close() error {
	r.mu.Lock()
	stops, s := r.closers, r.starter
	r.closers, r.starter = nil, nil
	r.mu.Unlock()

	var errs []error
	for _, stop := range stops {
		errs = append(errs, stop())
	}
	r.mu.Lock()
	var left []*Process
	for p := range r.processes {
		left = append(left, p)
	}
	r.mu.Unlock()
	for _, p := range left {
		errs = append(errs, p.Stop(syscall.SIGKILL, 5*time.Second))
	}
	if s != nil {
		close(s.requests)
		<-s.ended
	}
	if r.root != "" {
		errs = append(errs, os.RemoveAll(r.root), r.lock.Close())
		r.root = ""
	}
	return errors.Join(errs...)
}

// rootDir returns the directory that contains all others of this test binary.
func (r *resourceRegistry) rootDir() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.root != "" {
		return r.root, nil
	}
	removeStaleDirs()
	root, err := os.MkdirTemp("", rootPrefix)
	if err != nil {
		return "", fmt.Errorf("make a directory for the tests: %w", err)
	}
	if err := os.Chmod(root, 0o711); err != nil { // other users may pass through, not list it
		return "", fmt.Errorf("open the directory of the tests: %w", err)
	}
	if r.lock, err = lockFile(filepath.Join(root, lockName)); err != nil {
		return "", err
	}
	r.root = root
	return root, nil
}

// removeStaleDirs removes the directories of test binaries that were killed: their
// lock is free. It leaves directories younger than a minute alone, since a
// directory exists for a moment before its lock does.
func removeStaleDirs() {
	roots, _ := filepath.Glob(filepath.Join(os.TempDir(), rootPrefix+"*"))
	for _, root := range roots {
		info, err := os.Stat(root)
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if lock, err := lockFile(filepath.Join(root, lockName)); err == nil {
			_ = os.RemoveAll(root)
			_ = lock.Close()
		}
	}
}

// waitLock opens a file and waits until it has locked it. Closing the file releases
// the lock.
func waitLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the builds: %w", err)
	}
	if err := lock(f, true); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// lockFile opens a file and locks it, or fails at once if it is locked. The lock
// ends with this process: children do not inherit it, since Go opens files
// close-on-exec.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the tests: %w", err)
	}
	if err := lock(f, false); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
