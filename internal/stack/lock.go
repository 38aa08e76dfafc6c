package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A LockedError says that another command holds the lock.
type LockedError struct{ holder LockHolder }

func (e *LockedError) Error() string {
	if !e.holder.alive() {
		return fmt.Sprintf("a program that a dead command (process %d, %s) started is still running: try again in a minute", e.holder.PID, e.holder.Command)
	}
	return fmt.Sprintf("process %d (%s) is at it since %s: wait for it",
		e.holder.PID, e.holder.Command, e.holder.Since.Format(time.RFC3339))
}

// A LockHolder is the process that holds the lock.
type LockHolder struct {
	PID int `json:"pid"`
	// Boot identifies the boot of the machine: after a reboot the PID means
	// nothing.
	Boot    string    `json:"boot"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// alive reports whether the holder's process still runs.
func (h LockHolder) alive() bool {
	return h.Boot == bootID() && h.PID > 0 && !errors.Is(syscall.Kill(h.PID, 0), syscall.ESRCH)
}

// bootID returns the kernel's id of this boot.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// A Lock keeps two commands from running at once. It is an flock, so the kernel
// releases it when the process ends, however it ends. The programs that the
// process starts inherit it: the programs of a killed deploy must end before the
// next command inspects the stack.
type Lock struct {
	file  *os.File
	stack *Stack
	// DeadHolder is the previous holder if it died without releasing the lock, or
	// nil.
	DeadHolder *LockHolder
}

// Lock acquires the stack's lock, the file lock in the state folder, for this Stack
// and the programs that it starts. It returns a LockedError at once if the holder
// lives. If only programs of a dead holder still run, it waits for them, for at most
// wait.
func (s *Stack) Lock(ctx context.Context, command string, wait time.Duration) (*Lock, error) {
	if err := os.MkdirAll(s.StateDir(), 0o755); err != nil {
		return nil, fmt.Errorf("acquire the lock: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.StateDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("acquire the lock: %w", err)
	}
	if err := acquire(ctx, f, wait); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &Lock{file: f, stack: s}
	if old, ok := readHolder(f); ok {
		l.DeadHolder = &old
	}
	text, err := json.Marshal(LockHolder{PID: os.Getpid(), Boot: bootID(), Command: command, Since: time.Now().UTC().Truncate(time.Second)})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(text, '\n'), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("acquire the lock: %w", err), f.Close())
	}
	s.lock = l
	return l, nil
}

// acquire locks f, and waits while programs of a dead holder run.
func acquire(ctx context.Context, f *os.File, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("acquire the lock: %w", err)
		}
		h, _ := readHolder(f)
		if h.alive() {
			return &LockedError{h}
		}
		select {
		case <-ctx.Done():
			return &LockedError{h}
		case <-tick.C:
		}
	}
}

// readHolder reads the present or last holder of the lock. ok is false if the lock
// was released.
func readHolder(f *os.File) (h LockHolder, ok bool) {
	text := make([]byte, 4096)
	n, _ := f.ReadAt(text, 0)
	return h, json.Unmarshal(text[:n], &h) == nil && h.PID > 0
}

// Release releases the lock. Programs that are started later do not inherit it.
func (l *Lock) Release() error {
	l.stack.lock = nil
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
