package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/windows"
)

// A User is the user that a program runs as. On Windows it is always that of the test.
type User struct{}

// The signals that suspend a process and let it continue have the numbers of Linux.
// Windows has no such signals, and Process.Signal returns an error that says so.
const (
	sigStop = syscall.Signal(19)
	sigCont = syscall.Signal(18)
)

// kill ends a process. Windows has no other signal.
func kill(pid int, sig syscall.Signal) error {
	if sig != syscall.SIGKILL {
		return fmt.Errorf("send %v to %d: Windows can only kill", sig, pid)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return errors.Join(p.Kill(), p.Release())
}

// killGroup kills the process and those that it started.
func (p *Process) killGroup() {
	_ = exec.Command("taskkill", "/T", "/F", "/PID", strconv.Itoa(p.Pid())).Run()
}

// lock locks an open file. If it is locked, lock waits, or fails at once.
func lock(f *os.File, wait bool) error {
	how := uint32(windows.LOCKFILE_EXCLUSIVE_LOCK)
	if !wait {
		how |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	return windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped))
}

// own and credential are for tests that run as root.
func own(dir string, _ *User) error {
	return fmt.Errorf("give %s to another user: %w", dir, errors.ErrUnsupported)
}

func credential(name string) (*User, error) {
	return nil, fmt.Errorf("run a program as %s: %w", name, errors.ErrUnsupported)
}

// attributes make a program the first of its own process group, so that it does not
// receive the Ctrl+C of the test's console.
func attributes(*User) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
