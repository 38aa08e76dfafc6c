package e2e

import (
	"flag"
	"math/rand/v2"
	"slices"
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

// parallelUnlessLong lets the short form run beside other tests. The long form crashes
// databases, and measures waits, which they would lengthen.
func parallelUnlessLong(t *testing.T) {
	t.Helper()
	if !*longFaults {
		t.Parallel()
	}
}

// Every kind of fault happens to three nodes with members of all rooms on each of
// them: first one fault after the other, then several at once at random. Whatever
// dies, each acked message is stored, and every member receives it once and in order.
// `make faults` runs that. The short form has each part that may fail once, at once
// with others, in two groups: no fault alone, none at random, and of links only the
// one to PostgreSQL, stalled.
func TestFaultScenarios(t *testing.T) {
	parallelUnlessLong(t)
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
		rooms, rate := 4, 80
		if *longFaults {
			rooms, rate = 12, 300
		}
		r.startWorkload(rooms, rate, 20)
		r.waitRecovered()
		r.workload.waits.resetWorst()
		if *longFaults {
			for _, k := range r.shuffledKinds() {
				r.runAlone(k, k.long)
			}
			r.runOverlapping(40 * time.Second)
		} else {
			for _, group := range shortGroups() {
				r.runTogether(group)
			}
		}
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

// shuffledKinds returns all kinds in random order.
func (r *faultRun) shuffledKinds() []*faultKind {
	all := faultKinds()
	r.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// shortGroups returns the kinds of the short form: those that last for seconds, and
// those that kill. A room's lock is in the first group, since it ends with PostgreSQL,
// and first in it, since a node that is stopped may hold it.
func shortGroups() [2][]*faultKind {
	var groups [2][]*faultKind
	for _, k := range faultKinds() {
		switch {
		case k.target == targetRoom:
			groups[0] = append([]*faultKind{k}, groups[0]...)
		case k.short >= 3*time.Second:
			groups[0] = append(groups[0], k)
		case k.short > 0:
			groups[1] = append(groups[1], k)
		}
	}
	return groups
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

// maxGrace is how long a fault may take until it has an effect.
const maxGrace = 10 * time.Second

// finishActive runs the active faults to their ends, and returns the kinds of those
// that took effect.
func (r *faultRun) finishActive() (ended []*faultKind) {
	for len(r.active) > 0 {
		r.runFor(50*time.Millisecond, nil)
		ended = append(ended, r.undoExpired(time.Now())...)
	}
	return ended
}

// runTogether runs the short forms of some kinds at once, each of which must take
// effect, and waits for recovery.
func (r *faultRun) runTogether(kinds []*faultKind) {
	r.t.Helper()
	for _, k := range kinds {
		r.t.Logf("%s, at %v", k.name, time.Since(r.began).Round(time.Second))
		r.start(k, k.short, maxGrace)
	}
	ended := r.finishActive()
	for _, k := range kinds {
		if !slices.Contains(ended, k) {
			r.t.Errorf("%s: the fault took no effect", k.name)
			continue
		}
		r.report.addTimes(k.name, 1)
	}
	r.waitRecovered()
	worst := r.workload.waits.resetWorst()
	r.report.recordWorst("several at once", 0, worst)
	r.t.Logf("%v; clients now %v", worst, r.clientCounts())
}

// runAlone runs one fault to its end, waits for recovery, and records how long users
// waited.
func (r *faultRun) runAlone(k *faultKind, duration time.Duration) {
	r.t.Helper()
	r.t.Logf("%s, at %v", k.name, time.Since(r.began).Round(time.Second))
	r.start(k, duration, maxGrace)
	ended := r.finishActive()
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
