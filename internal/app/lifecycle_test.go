package app

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStepsRunInReverseAndNoneIsSkipped(t *testing.T) {
	var logged strings.Builder
	l := lifecycle{log: slog.New(slog.NewTextHandler(&logged, nil))}
	var order []string
	broken := errors.New("planted")
	for name, err := range map[string]error{"only": nil} {
		l.onStop(name, time.Second, func(context.Context) error { order = append(order, name); return err })
	}
	l.onStop("fails", time.Second, func(context.Context) error { order = append(order, "fails"); return broken })
	l.onStop("late", 10*time.Millisecond, func(ctx context.Context) error {
		order = append(order, "late")
		<-ctx.Done() // ended by the timeout of the step
		return ctx.Err()
	})
	err := l.stop(t.Context())
	if got := strings.Join(order, " "); got != "late fails only" {
		t.Errorf("order %q", got)
	}
	if !errors.Is(err, broken) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stopping fails") {
		t.Errorf("error %v", err)
	}
	if strings.Count(logged.String(), "duration=") != 3 {
		t.Errorf("want one line with a duration for each step:\n%s", logged.String())
	}
	if err := l.stop(t.Context()); err != nil || len(order) != 3 {
		t.Errorf("a second stop ran steps again: %v %v", order, err)
	}
}
