package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// A LockedError says that another command is at it.
type LockedError struct{ Holder LockHolder }

func (e *LockedError) Error() string {
	if !e.Holder.alive() {
		return fmt.Sprintf("what a dead command (process %d, %s) had begun is still running: try again in a minute", e.Holder.PID, e.Holder.Command)
	}
	return fmt.Sprintf("process %d (%s) is at it since %s: wait for it",
		e.Holder.PID, e.Holder.Command, e.Holder.Since.Format(time.RFC3339))
}

// A LockHolder is who has the lock.
type LockHolder struct {
	PID int `json:"pid"`
	// Boot tells the machine's starts apart: after another one a PID means
	// nothing.
	Boot    string    `json:"boot"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// alive tells whether the holder's process lives.
func (h LockHolder) alive() bool {
	return h.Boot == bootID() && h.PID > 0 && !errors.Is(syscall.Kill(h.PID, 0), syscall.ESRCH)
}

// bootID is the kernel's name for this start of the machine.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// A Lock keeps two commands apart. The kernel holds it, so that it ends with
// the process however that ends. Commands that the process runs inherit it: what
// a killed deploy had begun must end before the next one looks at the world.
type Lock struct {
	file *os.File
	// DeadHolder is who died with it, nil when nobody did.
	DeadHolder *LockHolder
}

// Lock takes the lock. One whose holder is dead but whose commands still run is
// waited for.
func (s StateDir) Lock(ctx context.Context, command string, wait time.Duration) (*Lock, error) {
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("take the lock: %w", err)
	}
	if err := acquire(ctx, f, wait); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &Lock{file: f}
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
		return nil, errors.Join(fmt.Errorf("take the lock: %w", err), f.Close())
	}
	return l, nil
}

// acquire flocks, and waits while a dead holder's commands run.
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
			return fmt.Errorf("take the lock: %w", err)
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

// readHolder reads who has, or had, the lock; false when it was given back.
func readHolder(f *os.File) (h LockHolder, ok bool) {
	text := make([]byte, 4096)
	n, _ := f.ReadAt(text, 0)
	return h, json.Unmarshal(text[:n], &h) == nil && h.PID > 0
}

// Release gives the lock back.
func (l *Lock) Release() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
