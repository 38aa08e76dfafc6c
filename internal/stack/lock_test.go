package stack

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTwoCommandsCannotRunAtOnce(t *testing.T) {
	s := &Stack{Dir: t.TempDir()}
	first, err := s.Lock(t.Context(), "switchyard deploy", time.Second)
	if err != nil || first.DeadHolder != nil {
		t.Fatal(first, err)
	}
	_, err = s.Lock(t.Context(), "switchyard deploy", time.Minute) // fails at once, since the holder lives
	var locked *LockedError
	if !errors.As(err, &locked) || locked.holder.PID != os.Getpid() || !strings.Contains(err.Error(), "switchyard deploy") {
		t.Fatal(err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := s.Lock(t.Context(), "switchyard status", time.Second)
	if err != nil || second.DeadHolder != nil {
		t.Fatal(second, err)
	}
	if err := second.Release(); err != nil {
		t.Fatal(err)
	}
}

// The lock of a dead command is taken over once the programs that it started have
// ended.
func TestADeadCommandsLockIsTakenOver(t *testing.T) {
	s := &Stack{Dir: t.TempDir()}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	lock, err := s.Lock(t.Context(), "switchyard deploy", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	// A program that the command started still holds the lock after its death.
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{lock.file}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(LockHolder{PID: dead.Process.Pid, Boot: bootID(), Command: "switchyard deploy v2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.StateDir(), "lock"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = lock.file.Close()
	if _, err := s.Lock(t.Context(), "switchyard deploy", 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), "still running") {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		taken, err := s.Lock(context.Background(), "switchyard deploy", time.Minute)
		if err == nil && (taken.DeadHolder == nil || taken.DeadHolder.PID != dead.Process.Pid) {
			err = errors.New("the lock does not name its dead holder")
		}
		if err == nil {
			err = taken.Release()
		}
		done <- err
	}()
	_ = in.Close()
	_ = child.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A process id from before a reboot means nothing.
	if (LockHolder{PID: os.Getpid(), Boot: "another"}).alive() {
		t.Error("a holder from before a reboot counts as alive")
	}
}
