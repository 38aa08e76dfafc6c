package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/client"
)

const (
	// maxConcurrent bounds the clients that connect or close at the same time.
	maxConcurrent = 64
	// joinTimeout is how long all clients together may take to join, beside
	// RampUp.
	joinTimeout = time.Minute
	// preflightTimeout is how long an address may take to answer.
	preflightTimeout = 10 * time.Second
	// pollInterval is the time between two tests of a condition.
	pollInterval = 10 * time.Millisecond
)

// A Run executes a Plan. It is safe for concurrent use.
//
//	run, err := load.Start(ctx, load.Plan{URLs: urls})
//	...                   // break something
//	run.Stop()            // or let Plan.Duration pass
//	report := run.Report()
type Run struct {
	plan    Plan
	began   time.Time
	history *History // nil if the plan is unchecked
	members []*member

	ending    chan struct{} // closed by endPublishing
	done      chan struct{} // closed by execute at its end
	endOnce   sync.Once
	endReason string // why publishing ended; written before ending is closed

	// Written by execute before it closes done.
	publishedFor  time.Duration
	finalProgress Progress // at the end of publishing
	summary       *RunSummary
	report        *Report // nil if the plan is unchecked

	// Counts of messages and connections so far.
	published, acked, failed, delivered, inFlight atomic.Int64
	connects, moves, cuts                         atomic.Int64
	heldBack, roomsNotRead, behind                atomic.Int64
	ackLatencies, deliveryLatencies               shardedLatencies // of an unchecked run

	mu          sync.Mutex // Protects following.
	lastConnErr error      // why a connection last failed
}

// Start connects the plan's clients and returns when all have joined; then they
// publish. It fails if an address can't be reached, or if not all clients can
// join in time. If ctx ends, publishing ends early, and the run is checked all the
// same.
func Start(ctx context.Context, plan Plan) (*Run, error) {
	plan = plan.withDefaults()
	if err := plan.validate(); err != nil {
		return nil, err
	}
	r := &Run{plan: plan, began: time.Now(), ending: make(chan struct{}), done: make(chan struct{})}
	if !plan.Unchecked {
		r.history = newHistory(plan.MaxEvents)
	}
	if err := r.preflight(ctx); err != nil {
		return nil, err
	}
	if err := r.connectAll(ctx); err != nil {
		r.closeAll()
		return nil, err
	}
	go r.execute(ctx)
	return r, nil
}

// preflight tests whether each address answers, because a client with several
// addresses would hide that one does not.
func (r *Run) preflight(ctx context.Context) error {
	errs := make([]error, len(r.plan.URLs))
	var all sync.WaitGroup
	for i, url := range r.plan.URLs {
		all.Go(func() { errs[i] = r.probe(ctx, url) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// probe connects to an address once.
func (r *Run) probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, preflightTimeout, fmt.Errorf("no answer within %v", preflightTimeout))
	defer cancel()
	failed := make(chan error, 1)
	opts := r.options(0, new(cuttableConn))
	opts.URLs = []string{url}
	opts.OnState = func(s client.StateEvent) {
		if s.State == client.Waiting {
			select {
			case failed <- s.Err:
			default:
			}
		}
	}
	c, err := client.New(opts)
	if err != nil {
		return err
	}
	defer c.Close()
	ready := make(chan error, 1)
	go func() { ready <- c.Ready(ctx) }()
	select {
	case err = <-ready:
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	case err = <-failed:
	}
	if err != nil {
		return fmt.Errorf("can't connect to %s: %w", url, err)
	}
	return nil
}

// connectAll connects all members, no faster than RampUp allows. If one can't
// join, it gives up.
func (r *Run) connectAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.plan.RampUp+joinTimeout)
	defer cancel()
	r.members = make([]*member, r.plan.Clients)
	errs := make([]error, r.plan.Clients)
	forEach(r.plan.Clients, func(n int) {
		due := time.Duration(float64(r.plan.RampUp) * float64(n) / float64(r.plan.Clients))
		if err := sleep(ctx, due-time.Since(r.began)); err != nil {
			errs[n] = err
			return
		}
		if r.members[n], errs[n] = r.connect(ctx, n); errs[n] != nil {
			cancel()
		}
	})
	joined := 0
	var first error
	for n, m := range r.members {
		switch {
		case m != nil:
			joined++
		case first == nil || errors.Is(first, context.Canceled):
			first = errs[n]
		}
	}
	if joined == r.plan.Clients {
		return nil
	}
	// A client that ran out of time does not say why its connections failed.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastConnErr != nil {
		first = fmt.Errorf("%w (the last connection failed: %w)", first, r.lastConnErr)
	}
	return fmt.Errorf("%d of %d clients could join: %w", joined, r.plan.Clients, first)
}

// forEach calls f with 0 to n-1, maxConcurrent at a time, and returns when all
// calls have.
func forEach(n int, f func(int)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, maxConcurrent)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	all.Wait()
}

// onState counts the connections of all clients.
func (r *Run) onState(s client.StateEvent) {
	switch s.State {
	case client.Live:
		r.connects.Add(1)
	case client.Waiting:
		r.mu.Lock()
		r.lastConnErr = s.Err
		r.mu.Unlock()
	}
}

// execute publishes until the end, then settles, closes and checks the run.
func (r *Run) execute(ctx context.Context) {
	defer close(r.done)
	began := time.Now()
	stop := context.AfterFunc(ctx, func() { r.endPublishing("stopped") })
	defer stop()
	if r.plan.Duration > 0 {
		timer := time.AfterFunc(r.plan.Duration, func() { r.endPublishing("the time was up") })
		defer timer.Stop()
	}
	var loops sync.WaitGroup
	loops.Go(r.publishLoop)
	loops.Go(r.cutLoop)
	loops.Wait()
	r.publishedFor, r.finalProgress = time.Since(began), r.Progress()
	r.settle()
	r.summary = r.summarize() // before closeAll, which would hide the rejected clients
	r.closeAll()              // which records open publishes as unknown
	if r.history != nil {
		r.report = Check(r.history)
		r.report.Run = r.summary
		r.report.Verdict = r.report.verdict()
	}
}

// endPublishing ends publishing. Only the first call has an effect.
func (r *Run) endPublishing(reason string) {
	r.endOnce.Do(func() {
		r.endReason = reason
		close(r.ending)
	})
}

// Stop ends publishing before Plan.Duration.
func (r *Run) Stop() { r.endPublishing("stopped") }

// BeginPhase begins another phase; see History.BeginPhase. In an unchecked run it
// does nothing.
func (r *Run) BeginPhase() {
	if r.history != nil {
		r.history.BeginPhase()
	}
}

// Done returns a channel that is closed when the run is over and checked.
func (r *Run) Done() <-chan struct{} { return r.done }

// Report waits for the end of the run and returns its report, nil if the plan is
// unchecked.
func (r *Run) Report() *Report {
	<-r.done
	return r.report
}

// History returns the history so far, nil if the plan is unchecked.
func (r *Run) History() *History { return r.history }

// closeAll closes all clients. Those that could not join are closed already.
func (r *Run) closeAll() {
	forEach(len(r.members), func(n int) {
		if m := r.members[n]; m != nil {
			m.client.Close()
		}
	})
}

// sleep waits for d, or returns the error of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
