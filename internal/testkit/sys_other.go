//go:build unix && !linux

package testkit

import "syscall"

// attributes make a program the leader of its own process group. It outlives a test
// binary that is killed, since only Linux can be asked to prevent that.
func attributes(user *User) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: user}
}
