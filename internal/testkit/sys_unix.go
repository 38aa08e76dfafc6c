//go:build unix

package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// A User is the user that a program runs as.
type User = syscall.Credential

// The signals that suspend a process and let it continue.
const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

func kill(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

// killGroup kills the processes that are left in the process group.
func (p *Process) killGroup() { _ = syscall.Kill(-p.Pid(), syscall.SIGKILL) }

// lock locks an open file. If it is locked, lock waits, or fails at once.
func lock(f *os.File, wait bool) error {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	return syscall.Flock(int(f.Fd()), how)
}

// own gives a file or a directory to a user.
func own(dir string, owner *User) error { return os.Chown(dir, int(owner.Uid), int(owner.Gid)) }

// credential returns the credential to run a program as a system user.
func credential(name string) (*User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("this test needs the system user %s, which the Debian package postgresql creates: "+
			"apt-get install -y postgresql (%w)", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &User{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}
