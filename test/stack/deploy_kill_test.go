//go:build stack

package stack

import (
	"math/rand/v2"
	"testing"
	"time"

	"switchyard/internal/deploy"
)

// The command is killed at some moment, and run again: it ends deployed or rolled
// back, whatever it was about.
func TestDeployKilledAndRunAgain(t *testing.T) {
	storyteller(t)
	images := []string{version(t, "k-even"), version(t, "k-odd")}
	random := rand.New(rand.NewPCG(*seed, 9))
	run := the.crowd(t)
	p := the.probe(t.Context(), *newcomers)
	// One that is left alone tells how long a deploy takes here.
	began := time.Now()
	e := the.deployed(t, images[1], "--ignore", "alerts") // which the stories before may have set off
	whole := time.Since(began)
	for n := range *kills {
		image := images[n%2]
		live := the.route(t)
		after := time.Duration(random.Float64() * float64(whole))
		d := the.deploy(t, image, "--ignore", "alerts")
		select {
		case <-d.ended:
		case <-time.After(after):
		}
		d.kill(t)
		killed := "at its end"
		if d.code != 0 {
			killed = d.doing()
		}
		t.Logf("seed %d, kill %d: after %v of %v, %s; exit %d", *seed, n+1, after.Round(time.Millisecond), whole.Round(time.Second), killed, d.code)
		// Whoever comes is served, also while nobody is at it.
		if _, _, err := the.visit(t.Context(), address(n%200)); err != nil {
			t.Errorf("after the kill: %v", err)
		}
		code, e2 := the.deploy(t, image, "--ignore", "alerts").wait(t)
		for again := 0; code == 4 && again < 5; again++ { // what the dead one began still runs
			code, e2 = the.deploy(t, image, "--ignore", "alerts").wait(t)
		}
		switch {
		case code == 0 && the.route(t) != live: // also when nothing was left to do
			the.settled(t, live.Other(), image, run)
		case code == 1 && e2.Outcome == deploy.RolledBack:
			the.settled(t, live, e.Image.Ref, run)
		default:
			t.Fatalf("exit %d, %+v", code, e2)
		}
		if last := the.last(t); last.Outcome != deploy.Deployed && last.Outcome != deploy.RolledBack {
			t.Errorf("the history ends with %+v", last)
		}
		e = the.last(t)
	}
	welcomed(t, p)
	unharmed(t, run)
}

// doing is the last step that it told of.
func (d *deployer) doing() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.events) == 0 {
		return "before it said anything"
	}
	last := d.events[len(d.events)-1]
	return "in " + last.Step + " (" + last.Kind + ")"
}
