package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// A lifecycle stops the parts that were built, in reverse order. Each step has a
// name and a bound, and is logged with its duration. A step that fails or is late
// does not keep the others from running. A lifecycle belongs to one goroutine.
type lifecycle struct {
	log   *slog.Logger
	steps []step // in the order in which the parts were built
}

// A step stops one part.
type step struct {
	name    string
	timeout time.Duration
	stop    func(context.Context) error
}

// onStop adds a step that runs before all steps that were added earlier.
func (l *lifecycle) onStop(name string, timeout time.Duration, stop func(context.Context) error) {
	l.steps = append(l.steps, step{name, timeout, stop})
}

// stop runs the steps, the newest first, and removes them. When ctx ends, the
// remaining steps end early.
func (l *lifecycle) stop(ctx context.Context) error {
	var errs []error
	for len(l.steps) > 0 {
		s := l.steps[len(l.steps)-1]
		l.steps = l.steps[:len(l.steps)-1]
		errs = append(errs, l.run(ctx, s))
	}
	return errors.Join(errs...)
}

func (l *lifecycle) run(ctx context.Context, s step) error {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.stop(ctx)
	if err != nil {
		err = fmt.Errorf("stopping %s: %w", s.name, err)
		l.log.Warn("stopped", "step", s.name, "duration", time.Since(started), "error", err)
		return err
	}
	l.log.Info("stopped", "step", s.name, "duration", time.Since(started))
	return nil
}
