//go:build stack

package stack

import (
	"math/rand/v2"
	"testing"
	"time"

	"switchyard/internal/deploy"
)

// The command is killed at a random moment and run again: it ends deployed or rolled
// back, whatever it was doing.
func TestDeployKilledAndRunAgain(t *testing.T) {
	prepareDeployTest(t)
	images := []string{buildVersion(t, "k-even"), buildVersion(t, "k-odd")}
	random := rand.New(rand.NewPCG(*seed, 9))
	run := sharedStack.startClients(t)
	p := sharedStack.startProber(t.Context(), *handshakeRate)
	// One that is not killed measures how long a deploy takes here.
	began := time.Now()
	e := sharedStack.mustDeploy(t, images[1], "--ignore", "alerts") // an earlier test may have made some fire
	whole := time.Since(began)
	for n := range *killCount {
		image := images[n%2]
		live := sharedStack.routedColor(t)
		after := time.Duration(random.Float64() * float64(whole))
		d := sharedStack.startDeploy(t, image, "--ignore", "alerts")
		select {
		case <-d.done:
		case <-time.After(after):
		}
		d.kill(t)
		killed := "at its end"
		if d.code != 0 {
			killed = d.currentStep()
		}
		t.Logf("seed %d, kill %d: after %v of %v, %s; exit %d", *seed, n+1, after.Round(time.Millisecond), whole.Round(time.Second), killed, d.code)
		// New connections are served while no command runs.
		if _, _, err := sharedStack.probeOnce(t.Context(), testAddress(n%200)); err != nil {
			t.Errorf("after the kill: %v", err)
		}
		code, e2 := sharedStack.startDeploy(t, image, "--ignore", "alerts").wait(t)
		for again := 0; code == 4 && again < 5; again++ { // a process of the killed command still runs
			code, e2 = sharedStack.startDeploy(t, image, "--ignore", "alerts").wait(t)
		}
		switch {
		case code == 0 && sharedStack.routedColor(t) != live: // the killed one may have done it all
			sharedStack.assertLive(t, live.Other(), image, run)
		case code == 1 && e2.Outcome == deploy.RolledBack:
			sharedStack.assertLive(t, live, e.Image.Ref, run)
		default:
			t.Fatalf("exit %d, %+v", code, e2)
		}
		if last := sharedStack.lastDeploy(t); last.Outcome != deploy.Deployed && last.Outcome != deploy.RolledBack {
			t.Errorf("the history ends with %+v", last)
		}
		e = sharedStack.lastDeploy(t)
	}
	assertNoFailures(t, p)
	assertUnharmed(t, run)
}

// currentStep describes the last event that the command printed.
func (d *deployCommand) currentStep() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.events) == 0 {
		return "before its first event"
	}
	last := d.events[len(d.events)-1]
	return "in " + last.Step + " (" + last.Kind + ")"
}
