package http

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestARateIsEnforcedAndABurstIsAllowed(t *testing.T) {
	var y gcraState
	r := perSecond(10)
	now := time.Hour
	for i := range 20 {
		if wait := y.take(r, now, 1); wait != 0 {
			t.Fatalf("%d of the burst waits %v", i, wait)
		}
	}
	if wait := y.take(r, now, 1); wait != 100*time.Millisecond {
		t.Errorf("over the burst: wait %v, want a tenth of a second", wait)
	}
	if wait := y.take(r, now+99*time.Millisecond, 1); wait != time.Millisecond {
		t.Errorf("a little early: wait %v", wait)
	}
	if wait := y.take(r, now+100*time.Millisecond, 1); wait != 0 {
		t.Errorf("as told: wait %v", wait)
	}
	var big gcraState
	if wait := big.take(r, now, 1000); wait != 0 {
		t.Errorf("more than the burst at once, after a quiet while: wait %v, and it would for ever", wait)
	}
	if wait := big.take(r, now, 1); wait == 0 {
		t.Error("it cost nothing")
	}
	var free gcraState
	for range 1000 {
		if free.take(rateLimit{}, now, 1<<20) != 0 {
			t.Fatal("no rate is a limit")
		}
	}
}

// Whatever is requested and when: in any time no more is allowed than the burst and
// the rate, and a request that waits as long as it was asked to is allowed.
func TestNoRequestPatternExceedsTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rateLimit{rapid.IntRange(1, 1<<30).Draw(t, "rate"), 0}
		r.burst = rapid.IntRange(1, 1<<30).Draw(t, "burst")
		var y gcraState
		now := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "start"))
		began, got := now, 0
		for range rapid.IntRange(1, 100).Draw(t, "asks") {
			now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
			n := rapid.IntRange(1, r.burst).Draw(t, "n")
			wait := y.take(r, now, n)
			if wait > 0 {
				now += wait
				if again := y.take(r, now, n); again != 0 {
					t.Fatalf("told to wait %v, then %v more", wait, again)
				}
			}
			got += n
			// Each request may gain less than one by rounding.
			most := float64(r.burst) + (now-began).Seconds()*float64(r.perSecond)*(1+1e-6) + 100*float64(r.perSecond)/1e9 + 1
			if float64(got) > most {
				t.Fatalf("%d in %v, at most %.0f may", got, now-began, most)
			}
		}
	})
}

func TestAKeyedLimiterForgetsIdleKeys(t *testing.T) {
	l := newKeyedLimiter(perSecond(10))
	for i := range 100_000 {
		l.take(fmt.Sprint("user", i), time.Duration(i)*time.Millisecond, 1) // each uses a tenth of a second
	}
	if len(l.states) > 1000 {
		t.Errorf("%d are known, 100 owe anything", len(l.states))
	}
	if l.take("greedy", 200*time.Second, 20) != 0 || l.take("greedy", 200*time.Second, 1) == 0 {
		t.Error("a rate is not kept")
	}
	if l.take("other", 200*time.Second, 20) != 0 {
		t.Error("one user's taking is another's")
	}
}

// 65,536 keys are known at most, as docs/limits.md says.
func TestAKeyedLimiterKnowsAtMost65536Keys(t *testing.T) {
	l := newKeyedLimiter(perSecond(1))
	for i := range 70_000 {
		l.take(fmt.Sprint(i), time.Second, 2)
	}
	if len(l.states) > 65_536 {
		t.Errorf("%d keys are known", len(l.states))
	}
}

// An attacker has more names than there is memory: the limiter stays small.
func TestAKeyedLimiterIsBounded(t *testing.T) {
	l := newKeyedLimiter(perSecond(1))
	l.size = 1000
	for i := range 50_000 {
		l.take(fmt.Sprint(i), time.Second, 2)
	}
	if len(l.states) > 1000 {
		t.Errorf("%d are known, at most 1,000 may be", len(l.states))
	}
}
