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
func TestFaultStories(t *testing.T) {
	t.Parallel()
	seed := *faultSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixMilli() % 1_000_000)
	}
	totals := newFaultReport()
	for range *faultRuns {
		if r := runFaults(t, seed); r != nil {
			r.tell(t)
			totals.add(r)
		}
		seed++
	}
	if *faultRuns > 1 {
		totals.tell(t)
	}
}

// runFaults returns nil when the run did not come to its end.
func runFaults(t *testing.T, seed uint64) (report *faultReport) {
	t.Logf("seed %d: make faults SEED=%[1]d does it again", seed)
	// A run of its own, so that its servers go before the next one's come.
	t.Run("run", func(t *testing.T) {
		dice := rand.New(rand.NewPCG(seed, 0))
		r := newFaultRun(launchFleet(t, dice, 3, testkit.StartRedis(t)))
		rate, together := 150, 8*time.Second
		if *longFaults {
			rate, together = 300, 40*time.Second
		}
		r.entertain(12, rate, 20)
		r.recovers()
		r.crowd.pauses.take()
		for _, k := range r.shuffled() {
			r.alone(k, r.lasts(k))
		}
		r.overlapping(together)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		verdict := r.crowd.end(ctx, t)
		r.report.judged(seed, verdict, time.Since(r.began))
		report = r.report
		if verdict.Verdict != load.Clean || verdict.Unknown > 0 || len(verdict.Refused) > 0 || verdict.Gaps > 0 {
			t.Errorf("seed %d:\n%s", seed, verdict)
		}
	})
	return report
}

// A faultRun is one seed's.
type faultRun struct {
	*fleet
	t      *testing.T
	began  time.Time
	report *faultReport
	active map[active]*happening
}

func newFaultRun(f *fleet) *faultRun {
	return &faultRun{fleet: f, t: f.t, began: time.Now(), report: newFaultReport(), active: map[active]*happening{}}
}

// An active fault is known by what it harms; station is nil where all share it.
type active struct {
	harms   string
	station *station
}

// A happening is a fault that goes on.
type happening struct {
	*kind
	station *station
	bit     func() bool
	until   time.Time
	atMost  time.Time // one that has not bitten goes on so long
}

// shuffled are the kinds of this form, in the dice's order.
func (r *faultRun) shuffled() []*kind {
	var those []*kind
	for _, k := range kinds() {
		if r.lasts(k) > 0 {
			those = append(those, k)
		}
	}
	r.dice.Shuffle(len(those), func(i, j int) { those[i], those[j] = those[j], those[i] })
	return those
}

func (r *faultRun) lasts(k *kind) time.Duration {
	if *longFaults {
		return k.long
	}
	return k.short
}

// begin has a fault happen, at the node where it hurts the most, unless
// something else happens to it already. One that lasted long enough and has not
// bitten, since nobody came near it, has so much patience.
func (r *faultRun) begin(k *kind, lasts, patience time.Duration) {
	place := active{harms: k.harms, station: r.busiest()}
	if k.harms == toRedis || k.harms == toPG {
		place.station = r.any()
	}
	target := place.station
	if k.shared() {
		place.station = nil
	}
	if r.active[place] != nil {
		return
	}
	h := &happening{kind: k, station: target, bit: k.do(r.fleet, target)}
	h.until = time.Now().Add(lasts)
	h.atMost = h.until.Add(patience)
	r.active[place] = h
}

// goOn is called again and again: it ends the faults whose time has come, and
// returns the kinds of those that bit.
func (r *faultRun) goOn(now time.Time) (ended []*kind) {
	for place, h := range r.active {
		if now.Before(h.until) || now.Before(h.atMost) && !h.bit() {
			if h.again != nil {
				h.again(r.fleet, h.station)
			}
			continue
		}
		if h.bit() {
			ended = append(ended, h.kind)
		}
		h.undo(r.fleet, h.station)
		delete(r.active, place)
	}
	return ended
}

// alone lets one fault happen, waits until all is well, and notes what users
// had to wait.
func (r *faultRun) alone(k *kind, lasts time.Duration) {
	r.t.Helper()
	r.t.Logf("%s, at %v", k.name, time.Since(r.began).Round(time.Second))
	r.begin(k, lasts, 10*time.Second)
	var ended []*kind
	for len(r.active) > 0 {
		r.pass(50*time.Millisecond, nil)
		ended = append(ended, r.goOn(time.Now())...)
	}
	if len(ended) == 0 {
		r.t.Errorf("%s: the fault did not bite", k.name)
	}
	r.recovers()
	worst := r.crowd.pauses.take()
	r.report.note(k.name, len(ended), worst)
	r.t.Logf("%s: %v; clients now %v", k.name, worst, r.spread())
}

// overlapping lets up to three faults happen at once, at random.
func (r *faultRun) overlapping(d time.Duration) {
	r.t.Helper()
	all, bit := kinds(), 0
	next := time.Now()
	for end := next.Add(d); time.Now().Before(end) || len(r.active) > 0; {
		now := time.Now()
		if now.After(next) && now.Before(end) && len(r.active) < 3 {
			r.begin(all[r.dice.IntN(len(all))], 300*time.Millisecond+time.Duration(r.dice.Int64N(int64(4*time.Second))), 0)
			next = now.Add(200*time.Millisecond + time.Duration(r.dice.Int64N(int64(time.Second))))
		}
		for _, k := range r.goOn(now) {
			r.report.count(k.name, 1)
			bit++
		}
		r.pass(50*time.Millisecond, nil)
	}
	r.recovers()
	r.report.note("several at once", 0, r.crowd.pauses.take())
	if bit < 3 {
		r.t.Errorf("only %d faults bit in %v", bit, d)
	}
}
