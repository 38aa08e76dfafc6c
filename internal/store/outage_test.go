package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A database is read-only for a while, or its disk is full: it answers pings and
// refuses commits. Another time it is gone. The log says once that it cannot be
// written, and once that it can again, whatever number of workers try, and however
// often.
func TestAnOutageIsOneLineAndItsEndAnother(t *testing.T) {
	for name, pingsFail := range map[string]bool{"read-only": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs := new(testkit.Logs)
				var down atomic.Bool
				respond := func(_ context.Context, batch []*queuedPublication) error {
					if down.Load() && (len(batch) > 0 || pingsFail) {
						return errConnectionLost
					}
					return nil
				}
				var writers []writer
				for range 3 {
					writers = append(writers, &fakeWriter{respond: respond})
				}
				k := newCommitter(Config{Logger: logs.Logger()}.withDefaults(), newMetrics(prometheus.NewRegistry()), writers, &fakeWriter{})
				k.Start(func([]*message.Publication) {})
				publish := func(seconds int, rooms int) {
					for i := range seconds {
						for room := range rooms {
							k.Append(publication(numbered("room", room), numbered("id", i), "x"))
						}
						time.Sleep(time.Second)
					}
				}
				expect := func(when, want string) {
					t.Helper()
					if got := fmt.Sprint(logs.Count("the log cannot be written"), " ", logs.Count("the log can be written again")); got != want {
						t.Errorf("%s there are %s lines, want %s", when, got, want)
					}
				}
				for outage := range 2 {
					down.Store(true)
					publish(60, 30) // on all workers
					publish(30, 0)  // and nobody publishes for a while
					expect("during the outage", fmt.Sprintf("%d %d", outage+1, outage))
					down.Store(false)
					publish(3, 1) // a canary, on one of the workers
					time.Sleep(5 * time.Second)
					expect("after the outage", fmt.Sprintf("%d %d", outage+1, outage+1))
				}
				if err := k.close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An operator changes the mode of a pooler, and the first publish after it only ends with
// its deadline. The error that says what to do follows, and is in the log, once.
func TestAnOutageNamesWhatToDoWheneverThatIsKnown(t *testing.T) {
	logs := new(testkit.Logs)
	o := &outage{log: logs.Logger(), down: map[*appendWorker]exchange{}}
	first, second := new(appendWorker), new(appendWorker)
	for outages := range 2 {
		o.recordFailure(first, exchangeCommit, context.DeadlineExceeded)
		for range 2 {
			o.recordFailure(second, exchangeCommit, fmt.Errorf("connect: %w", errPoolerSwitches))
			o.recordFailure(first, exchangePing, errConnectionLost)
		}
		all, advice := logs.Count("the log cannot be written"), logs.Count("pool_mode = session")
		if all != 2*(outages+1) || advice != outages+1 {
			t.Errorf("after %d outages %d lines, of which %d say what to do", outages+1, all, advice)
		}
		for _, w := range []*appendWorker{first, second} {
			o.recordSuccess(w, exchangeCommit)
		}
	}
	o.recordFailure(first, exchangeCommit, errPoolerSwitches)
	o.recordFailure(second, exchangeCommit, errPoolerSwitches)
	if got := logs.Count("the log cannot be written"); got != 5 {
		t.Errorf("%d lines after an outage that began with what to do, want 5", got)
	}
}
