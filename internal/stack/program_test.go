package stack

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The error of a command names its subcommand, whatever flags come before it.
func TestACommandErrorNamesTheSubcommand(t *testing.T) {
	for want, args := range map[string]string{
		"compose up app_green": "compose -p yard -f /opt/docker-compose.prod.yml up -d --no-deps app_green",
		"inspect abc":          "inspect --type container abc",
		"ps":                   "ps -aq --no-trunc --filter label=x",
	} {
		if got := describeArgs(strings.Fields(args)); got != want {
			t.Errorf("%s is described as %q, want %q", args, got, want)
		}
	}
}

func TestACommandHasATimeout(t *testing.T) {
	_, err := new(Stack).output(t.Context(), 100*time.Millisecond, false, nil, "sleep", "infinity")
	if err == nil || !strings.HasSuffix(err.Error(), "no end within 100ms") {
		t.Error(err)
	}
	if _, err = new(Stack).output(t.Context(), time.Minute, false, nil, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Error(err)
	}
	_, err = new(Stack).output(t.Context(), time.Minute, false, nil, "sh", "-c", "echo first; echo why >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3: why") {
		t.Error(err)
	}
}

// A color's variables in the shell must not override .env.
func TestColorVariablesOfTheShellAreNotPassedOn(t *testing.T) {
	t.Setenv("IMAGE_BLUE", "of-the-shell")
	t.Setenv("IMAGE_OTHER", "kept")
	out, err := new(Stack).output(t.Context(), time.Minute, false, []string{"IMAGE_MIGRATE=v2"}, "sh", "-c", `echo "$IMAGE_BLUE,$IMAGE_OTHER,$IMAGE_MIGRATE"`)
	if err != nil || string(out) != ",kept,v2\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := syscall.Kill(os.Getpid(), 0); err != nil {
		t.Error(err)
	}
}

// The error of a program has its error output on one line. A program ends with its
// context.
func TestAFailedProgramIsReportedOnOneLine(t *testing.T) {
	t.Parallel()
	run := func(ctx context.Context, args ...string) error {
		return Execute(ctx, exec.CommandContext(ctx, args[0], args[1:]...), Program{Args: args})
	}
	err := run(t.Context(), "sh", "-c", "echo one >&2; echo two >&2; exit 3")
	var failed *programError
	if !errors.As(err, &failed) || err.Error() != "sh: one; two" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := run(ctx, "sleep", "infinity"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
