package e2e

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

var (
	longFaults = flag.Bool("faults.long", false, "run the fault stories in their long form, some minutes a seed")
	faultSeed  = flag.Uint64("faults.seed", 0, "the seed of the first run; 0: by the clock")
	faultRuns  = flag.Int("faults.runs", 1, "how many runs, each with a seed one higher")
	faultFile  = flag.String("faults.report", "", "a file to which each run's report is appended as a line of JSON")
)

// Three nodes, a crowd in twelve rooms on all of them, and every kind of fault:
// first one after the other, then several at once at random. Whatever dies, who
// was acked is stored, and every member gets every message once and in order.
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

// runFaults returns nil when the run did not come to its end.
func runFaults(t *testing.T, seed uint64) (report *faultReport) {
	t.Logf("seed %d: make faults SEED=%[1]d does it again", seed)
	// A run of its own, so that its servers go before the next one's come.
	t.Run("run", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0))
		r := newFaultRun(startFaultEnv(t, rng, 3, testkit.StartRedis(t)))
		rate, overlap := 150, 8*time.Second
		if *longFaults {
			rate, overlap = 300, 40*time.Second
		}
		r.startWorkload(12, rate, 20)
		r.waitRecovered()
		r.workload.waits.resetWorst()
		for _, k := range r.shuffledKinds() {
			r.runAlone(k, r.duration(k))
		}
		r.runOverlapping(overlap)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		verdict := r.workload.finish(ctx, t)
		r.report.setResult(seed, verdict, time.Since(r.began))
		report = r.report
		if verdict.Verdict != load.Clean || verdict.Unknown > 0 || len(verdict.Refused) > 0 || verdict.Gaps > 0 {
			t.Errorf("seed %d:\n%s", seed, verdict)
		}
	})
	return report
}

// A faultRun is one seed's.
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

// An faultKey fault is known by what it harms; station is nil where all share it.
type faultKey struct {
	target string
	node   *proxiedNode
}

// A activeFault is a fault that goes on.
type activeFault struct {
	*faultKind
	node       *proxiedNode
	tookEffect func() bool
	until      time.Time
	atMost     time.Time // one that has not bitten goes on so long
}

// shuffledKinds are the kinds of this form, in the dice's order.
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

// start has a fault happen, at the node where it hurts the most, unless
// something else happens to it already. One that lasted long enough and has not
// bitten, since nobody came near it, has so much patience.
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
	h := &activeFault{faultKind: k, node: target, tookEffect: k.inject(r.faultEnv, target)}
	h.until = time.Now().Add(duration)
	h.atMost = h.until.Add(grace)
	r.active[key] = h
}

// advance is called again and again: it ends the faults whose time has come, and
// returns the kinds of those that bit.
func (r *faultRun) advance(now time.Time) (ended []*faultKind) {
	for key, h := range r.active {
		if now.Before(h.until) || now.Before(h.atMost) && !h.tookEffect() {
			if h.onTick != nil {
				h.onTick(r.faultEnv, h.node)
			}
			continue
		}
		if h.tookEffect() {
			ended = append(ended, h.faultKind)
		}
		h.undo(r.faultEnv, h.node)
		delete(r.active, key)
	}
	return ended
}

// runAlone lets one fault happen, waits until all is well, and notes what users
// had to wait.
func (r *faultRun) runAlone(k *faultKind, duration time.Duration) {
	r.t.Helper()
	r.t.Logf("%s, at %v", k.name, time.Since(r.began).Round(time.Second))
	r.start(k, duration, 10*time.Second)
	var ended []*faultKind
	for len(r.active) > 0 {
		r.runFor(50*time.Millisecond, nil)
		ended = append(ended, r.advance(time.Now())...)
	}
	if len(ended) == 0 {
		r.t.Errorf("%s: the fault did not bite", k.name)
	}
	r.waitRecovered()
	worst := r.workload.waits.resetWorst()
	r.report.recordWorst(k.name, len(ended), worst)
	r.t.Logf("%s: %v; clients now %v", k.name, worst, r.clientCounts())
}

// runOverlapping lets up to three faults happen at once, at random.
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
		for _, k := range r.advance(now) {
			r.report.addTimes(k.name, 1)
			effective++
		}
		r.runFor(50*time.Millisecond, nil)
	}
	r.waitRecovered()
	r.report.recordWorst("several at once", 0, r.workload.waits.resetWorst())
	if effective < 3 {
		r.t.Errorf("only %d faults bit in %v", effective, d)
	}
}
