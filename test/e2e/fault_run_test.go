package e2e

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

var (
	longFaults = flag.Bool("faults.long", false, "run the fault tests in their long form, several minutes per seed")
	faultSeed  = flag.Uint64("faults.seed", 0, "the seed of the first run; 0 takes it from the clock")
	faultRuns  = flag.Int("faults.runs", 1, "how many runs, each with a seed one higher")
	faultFile  = flag.String("faults.report", "", "a file to which each run's report is appended as a line of JSON")
)

// Every kind of fault happens to three nodes with members of all rooms on each of
// them: first one fault after the other, then several at once at random. Whatever
// dies, each acked message is stored, and every member receives it once and in order.
// `make faults` runs the long form.
func TestFaultScenarios(t *testing.T) {
	t.Parallel()
	seed := *faultSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixMilli() % 1_000_000)
	}
	totals := newFaultReport()
	for range *faultRuns {
		if r := runFaults(t, seed); r != nil {
			r.print(t)
			totals.add(r)
		}
		seed++
	}
	if *faultRuns > 1 {
		totals.print(t)
	}
}

// runFaults does one run. It returns nil when the run did not reach its end.
func runFaults(t *testing.T, seed uint64) (report *faultReport) {
	t.Logf("seed %d: make faults SEED=%[1]d repeats it", seed)
	// A subtest, so that its servers end before those of the next run start.
	t.Run("run", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0))
		r := newFaultRun(startFaultEnv(t, rng, 3, testkit.StartRedis(t)))
		rooms, rate, overlap := 6, 100, 5*time.Second
		if *longFaults {
			rooms, rate, overlap = 12, 300, 40*time.Second
		}
		r.startWorkload(rooms, rate, 20)
		r.waitRecovered()
		r.workload.waits.resetWorst()
		for _, k := range r.shuffledKinds() {
			r.runAlone(k, r.duration(k))
		}
		r.runOverlapping(overlap)
		verdict := r.workload.finish(t)
		r.report.setResult(seed, verdict, time.Since(r.began))
		report = r.report
		if verdict.Verdict != load.Clean || verdict.Unknown > 0 || len(verdict.Refused) > 0 || verdict.Gaps > 0 {
			t.Errorf("seed %d:\n%s", seed, verdict)
		}
	})
	return report
}

// A faultRun is the run of one seed.
type faultRun struct {
	*faultEnv
	t      *testing.T
	began  time.Time
	report *faultReport
	active map[faultKey]*activeFault
}

func newFaultRun(f *faultEnv) *faultRun {
	return &faultRun{faultEnv: f, t: f.t, began: time.Now(), report: newFaultReport(), active: map[faultKey]*activeFault{}}
}

// A faultKey identifies an active fault by its target. node is nil where all nodes
// share the target.
type faultKey struct {
	target string
	node   *proxiedNode
}

// An activeFault is a fault that was injected and not yet undone.
type activeFault struct {
	*faultKind
	node       *proxiedNode
	tookEffect func() bool
	until      time.Time
	latestEnd  time.Time // its end if it takes no effect
}

// shuffledKinds returns the kinds of this form in random order.
func (r *faultRun) shuffledKinds() []*faultKind {
	var selected []*faultKind
	for _, k := range faultKinds() {
		if r.duration(k) > 0 {
			selected = append(selected, k)
		}
	}
	r.rng.Shuffle(len(selected), func(i, j int) { selected[i], selected[j] = selected[j], selected[i] })
	return selected
}

func (r *faultRun) duration(k *faultKind) time.Duration {
	if *longFaults {
		return k.long
	}
	return k.short
}

// start injects a fault, at the busiest node if its target belongs to one node, unless another
// fault has the same target. A fault that has not taken effect after duration, since
// its target was not used, continues for up to grace.
func (r *faultRun) start(k *faultKind, duration, grace time.Duration) {
	key := faultKey{target: k.target, node: r.busiest()}
	if k.target == targetRedisLink || k.target == targetPostgresLink {
		key.node = r.anyWithClients()
	}
	target := key.node
	if k.shared() {
		key.node = nil
	}
	if r.active[key] != nil {
		return
	}
	f := &activeFault{faultKind: k, node: target, tookEffect: k.inject(r.faultEnv, target)}
	f.until = time.Now().Add(duration)
	f.latestEnd = f.until.Add(grace)
	r.active[key] = f
}

// undoExpired undoes the faults whose time is over, and returns the kinds of those that
// took effect. It calls onTick of the others.
func (r *faultRun) undoExpired(now time.Time) (ended []*faultKind) {
	for key, f := range r.active {
		if now.Before(f.until) || now.Before(f.latestEnd) && !f.tookEffect() {
			if f.onTick != nil {
				f.onTick(r.faultEnv, f.node)
			}
			continue
		}
		if f.tookEffect() {
			ended = append(ended, f.faultKind)
		}
		f.undo(r.faultEnv, f.node)
		delete(r.active, key)
	}
	return ended
}

// runAlone runs one fault to its end, waits for recovery, and records how long users
// waited.
func (r *faultRun) runAlone(k *faultKind, duration time.Duration) {
	r.t.Helper()
	r.t.Logf("%s, at %v", k.name, time.Since(r.began).Round(time.Second))
	r.start(k, duration, 10*time.Second)
	var ended []*faultKind
	for len(r.active) > 0 {
		r.runFor(50*time.Millisecond, nil)
		ended = append(ended, r.undoExpired(time.Now())...)
	}
	if len(ended) == 0 {
		r.t.Errorf("%s: the fault took no effect", k.name)
	}
	r.waitRecovered()
	worst := r.workload.waits.resetWorst()
	r.report.recordWorst(k.name, len(ended), worst)
	r.t.Logf("%s: %v; clients now %v", k.name, worst, r.clientCounts())
}

// runOverlapping runs up to three random faults at once.
func (r *faultRun) runOverlapping(d time.Duration) {
	r.t.Helper()
	all, effective := faultKinds(), 0
	next := time.Now()
	for end := next.Add(d); time.Now().Before(end) || len(r.active) > 0; {
		now := time.Now()
		if now.After(next) && now.Before(end) && len(r.active) < 3 {
			r.start(all[r.rng.IntN(len(all))], 300*time.Millisecond+time.Duration(r.rng.Int64N(int64(4*time.Second))), 0)
			next = now.Add(200*time.Millisecond + time.Duration(r.rng.Int64N(int64(time.Second))))
		}
		for _, k := range r.undoExpired(now) {
			r.report.addTimes(k.name, 1)
			effective++
		}
		r.runFor(50*time.Millisecond, nil)
	}
	r.waitRecovered()
	r.report.recordWorst("several at once", 0, r.workload.waits.resetWorst())
	if effective < 3 {
		r.t.Errorf("only %d faults took effect in %v", effective, d)
	}
}
