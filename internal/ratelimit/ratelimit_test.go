package ratelimit

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestARateIsEnforcedAndABurstIsAllowed(t *testing.T) {
	var s State
	r := PerSecond(10)
	now := time.Hour
	for i := range 20 {
		if wait := s.Take(r, now, 1); wait != 0 {
			t.Fatalf("event %d of the burst waits %v", i, wait)
		}
	}
	if wait := s.Take(r, now, 1); wait != 100*time.Millisecond {
		t.Errorf("over the burst: wait %v, want a tenth of a second", wait)
	}
	if wait := s.Take(r, now+99*time.Millisecond, 1); wait != time.Millisecond {
		t.Errorf("a millisecond early: wait %v", wait)
	}
	if wait := s.Take(r, now+100*time.Millisecond, 1); wait != 0 {
		t.Errorf("after the wait: wait %v", wait)
	}
	var big State
	if wait := big.Take(r, now, 1000); wait != 0 {
		t.Errorf("more than the burst at once: wait %v, want none after a quiet time", wait)
	}
	if wait := big.Take(r, now, 1); wait == 0 {
		t.Error("more than the burst used nothing")
	}
	var free State
	for range 1000 {
		if free.Take(Limit{}, now, 1<<20) != 0 {
			t.Fatal("the zero Limit is a limit")
		}
	}
}

// Whatever is requested and when: in any time no more is allowed than the burst and
// the rate, and a request that waits as long as it was asked to is allowed.
func TestNoRequestPatternExceedsTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Limit{rapid.IntRange(1, 1<<30).Draw(t, "rate"), 0}
		// A burst is worth 12 days at most, as every allowed setting's is: a
		// hundred of them fit into a time.Duration.
		r.Burst = rapid.IntRange(1, min(1<<30, r.PerSecond*1_000_000)).Draw(t, "burst")
		var s State
		now := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "start"))
		began, got := now, 0
		for range rapid.IntRange(1, 100).Draw(t, "requests") {
			now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
			n := rapid.IntRange(1, r.Burst).Draw(t, "n")
			wait := s.Take(r, now, n)
			if wait > 0 {
				now += wait
				if again := s.Take(r, now, n); again != 0 {
					t.Fatalf("waited %v as required, then %v more", wait, again)
				}
			}
			got += n
			// Each request may gain less than one by rounding.
			most := float64(r.Burst) + (now-began).Seconds()*float64(r.PerSecond)*(1+1e-6) + 100*float64(r.PerSecond)/1e9 + 1
			if float64(got) > most {
				t.Fatalf("%d events in %v, want at most %.0f", got, now-began, most)
			}
		}
	})
}

// What is left is what can be used at once, whatever was used before.
func TestWhatIsLeftCanBeUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Limit{rapid.IntRange(1, 1_000_000_000).Draw(t, "rate"), 0}
		l.Burst = rapid.IntRange(1, min(2_000_000_000, l.PerSecond*1000)).Draw(t, "burst")
		var s State
		now := time.Hour
		for range rapid.IntRange(0, 5).Draw(t, "times") {
			s.Take(l, now, rapid.IntRange(1, l.Burst).Draw(t, "n"))
			now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
		}
		left := s.Left(l, now)
		if s.Take(l, now, left) != 0 {
			t.Fatalf("%d are left, and can't be used", left)
		}
		if l.cost(2) > 1 && s.Take(l, now, 2) == 0 {
			t.Fatalf("two more than the %d that are left can be used", left)
		}
	})
}

func TestStatesAreAddedUpToABurst(t *testing.T) {
	l, now := PerSecond(10), time.Hour
	var one, all State
	one.Take(l, now, 12)
	all.Add(l, now, one)
	if got := all.Left(l, now); got != 8 {
		t.Errorf("one that used 12 leaves %d of 20", got)
	}
	all.Add(l, now, one)
	if got := all.Left(l, now); got != 0 {
		t.Errorf("two leave %d", got)
	}
	if got := all.Left(l, now+500*time.Millisecond); got != 5 {
		t.Errorf("half a second later %d are left, so that more than a burst was owed", got)
	}
	all.Subtract(now, one)
	if got := all.Left(l, now); got != 12 {
		t.Errorf("without one of them %d are left", got)
	}
	all.Subtract(now, one)
	if !all.IsZero(now) {
		t.Error("without both something is owed")
	}
}

func TestAKeyedLimiterForgetsIdleKeys(t *testing.T) {
	l := NewKeyed(PerSecond(10))
	for i := range 100_000 {
		l.Take(fmt.Sprint("user", i), time.Duration(i)*time.Millisecond, 1) // each uses a tenth of a second
	}
	if len(l.states) > 1000 {
		t.Errorf("%d keys are known, of which 100 are in use", len(l.states))
	}
	if l.Take("greedy", 200*time.Second, 20) != 0 || l.Take("greedy", 200*time.Second, 1) == 0 {
		t.Error("the rate of a key is not enforced")
	}
	if l.Take("other", 200*time.Second, 20) != 0 {
		t.Error("the use of one key counts for another")
	}
}

// 65,536 keys are known at most, as docs/limits.md says.
func TestAKeyedLimiterKnowsAtMost65536Keys(t *testing.T) {
	l := NewKeyed(PerSecond(1))
	for i := range 70_000 {
		l.Take(fmt.Sprint(i), time.Second, 2)
	}
	if len(l.states) > 65_536 {
		t.Errorf("%d keys are known", len(l.states))
	}
}

// An attacker has more names than there is memory: the limiter stays small.
func TestAKeyedLimiterIsBounded(t *testing.T) {
	l := NewKeyed(PerSecond(1))
	l.size = 1000
	for i := range 50_000 {
		l.Take(fmt.Sprint(i), time.Second, 2)
	}
	if len(l.states) > 1000 {
		t.Errorf("%d keys are known, want at most 1,000", len(l.states))
	}
}

// A limit without a burst limits: it lets one event pass at a time.
func TestALimitWithoutABurstLimits(t *testing.T) {
	var s State
	l := Limit{PerSecond: 10}
	if wait := s.Take(l, 0, 1); wait != 0 {
		t.Errorf("the first event waits for %v", wait)
	}
	if wait := s.Take(l, 0, 1); wait != 100*time.Millisecond {
		t.Errorf("the second event waits for %v, want 100ms", wait)
	}
}
