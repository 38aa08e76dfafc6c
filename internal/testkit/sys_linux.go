package testkit

import "syscall"

// attributes make a program the leader of its own process group, which the kernel
// kills if the test binary dies.
func attributes(user *User) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: user}
}
