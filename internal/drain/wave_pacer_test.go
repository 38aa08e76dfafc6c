package drain

import (
	"testing"
	"time"
)

var healthyTargets = MoveTargets{Known: true, Nodes: 1, Ready: 1, HandshakeLimit: 10_000, HandshakeP95: 20 * time.Millisecond}

func TestWavesAreEvenWithoutNodeStatuses(t *testing.T) {
	var p wavePacer
	notAsked := 1000
	for second := range 10 {
		n := p.next(notAsked, notAsked, 0, time.Duration(10-second)*time.Second, MoveTargets{})
		if n != 100 {
			t.Errorf("second %d: a wave of %d with %d not asked, want 100", second, n, notAsked)
		}
		notAsked -= n
	}
	if notAsked != 0 {
		t.Errorf("%d were not asked", notAsked)
	}
	if n := p.next(3, 0, 0, time.Minute, MoveTargets{}); n != 3 {
		t.Errorf("a wave of %d, want all 3", n)
	}
	if n := p.next(500, 0, 0, 0, MoveTargets{}); n != 500 {
		t.Errorf("a wave of %d at the end of the window, want all 500", n)
	}
}

func TestWavesFollowTheMoveTargets(t *testing.T) {
	with := func(change func(*MoveTargets)) MoveTargets { r := healthyTargets; change(&r); return r }
	slow := with(func(r *MoveTargets) { r.HandshakeP95 = time.Second })
	bad := with(func(r *MoveTargets) { r.HandshakeP95 = 5 * time.Second })
	noneReady := with(func(r *MoveTargets) { r.Ready = 0 })
	full := with(func(r *MoveTargets) { r.HandshakeLimit = 1000; r.OtherHandshakes = 760 })

	far := with(func(r *MoveTargets) { r.HandshakeP95 = 700 * time.Millisecond })
	refusing := with(func(r *MoveTargets) { r.RefusedHandshakes = 1 })

	const notAsked = 10_000
	window := 100 * time.Second // an even spread is 100 a wave
	type step struct {
		name            string
		moving, missing int
		r               MoveTargets
		want            int
	}
	for name, steps := range map[string][]step{
		"slow": {
			{"even", 0, 0, healthyTargets, 100},
			{"slow: half", 0, 0, slow, 50},
			{"the effect is not visible yet", 0, 0, slow, 50},
			{"still not visible", 0, 0, slow, 50},
			{"still not visible", 0, 0, slow, 50},
			{"still slow: half again", 0, 0, slow, 25},
			{"well: a quarter more", 0, 0, healthyTargets, 31},
			{"and more", 0, 0, healthyTargets, 39},
			{"and more", 0, 0, healthyTargets, 48},
			{"up to even", 0, 0, with(func(r *MoveTargets) { r.HandshakeP95 = 240 * time.Millisecond }), 61},
		},
		"bad": {
			{"bad: none", 0, 0, bad, 0},
			{"still bad", 0, 0, bad, 0},
			{"recovered", 0, 0, healthyTargets, 5},
			{"no node is ready: none", 0, 0, noneReady, 0},
		},
		"clients that were asked": {
			{"even", 0, 0, healthyTargets, 100},
			{"even", 100, 0, healthyTargets, 100},
			{"three waves may be moving", 300, 0, healthyTargets, 100},
			{"more than that: none", 301, 0, healthyTargets, 0},
			{"they leave: half", 0, 0, healthyTargets, 50},
		},
		"missing": {
			{"even", 0, 0, healthyTargets, 100},
			{"a whole wave", 0, 100, healthyTargets, 100},
			{"more than that: half", 0, 101, healthyTargets, 50},
			{"two waves: none", 0, 201, healthyTargets, 0},
			{"they returned", 0, 0, healthyTargets, 50},
		},
		"full": {
			{"a share of the free handshakes", 0, 0, full, 13}, // other nodes may drain, too
			{"again", 0, 0, full, 13},
			{"again", 0, 0, full, 13},
			{"no other node drains: a quarter more", 0, 0, full, 16},
			{"and more", 0, 0, full, 20},
			{"and more", 0, 0, full, 25},
			{"and more", 0, 0, full, 31},
			{"free handshakes again", 0, 0, healthyTargets, 39},
			{"handshakes are refused: half", 0, 0, refusing, 19},
		},
		"unknown at first": {
			{"as this node would accept", 0, 0, MoveTargets{HandshakeLimit: 500}, 100},
			{"known: even", 0, 0, healthyTargets, 100},
			{"slow: half", 0, 0, slow, 50},
			{"unknown again", 0, 0, MoveTargets{HandshakeLimit: 500}, 100},
			{"known: a quarter more", 0, 0, healthyTargets, 62},
		},
		"far away": {
			{"even", 0, 0, far, 100},
			{"still the same latency", 0, 0, far, 100},
			{"twice as long", 0, 0, with(func(r *MoveTargets) { r.HandshakeP95 = 2 * far.HandshakeP95 }), 50},
		},
	} {
		var p wavePacer
		for _, s := range steps {
			if got := p.next(notAsked, s.moving, s.missing, window, s.r); got != s.want {
				t.Errorf("%s: %s: %d, want %d", name, s.name, got, s.want)
			}
		}
	}
}

// All draining nodes share what the receivers accept and leave some for other
// clients, from the first wave on, when they do not know of each other yet.
func TestWavesFillTheMoveTargets(t *testing.T) {
	for _, drainers := range []int{1, 3} {
		const limit, others = 500, 40
		pacers := make([]wavePacer, drainers)
		for wave := range 20 {
			r := MoveTargets{Known: true, Nodes: 1, Ready: 1, HandshakeLimit: limit, OtherHandshakes: others}
			if wave >= 2 {
				r.DrainingNodes = drainers - 1
			}
			all := 0
			for i := range pacers {
				all += pacers[i].next(5000, 0, 0, 10*time.Second, r)
			}
			want := targetLoad*limit - others
			if float64(all) > want || wave >= 10 && float64(all) < want-float64(drainers) {
				t.Errorf("%d nodes drain: wave %d is %d, with a limit of %d a second and %d other handshakes", drainers, wave, all, limit, others)
			}
		}
	}
}

// A wave that was sent late, because its sessions were saved first, does not
// overlap with the next one, and delays do not add up.
func TestWavesDoNotOverlap(t *testing.T) {
	var s waveSchedule
	began := time.Now()
	var end time.Duration // of the wave before
	for i, sentAt := range []time.Duration{300, 1005, 2000, 3400, 4000, 5000, 9000, 10_000} {
		sentAt *= time.Millisecond
		begins := sentAt + s.next(began.Add(sentAt))
		if begins < end || begins < sentAt || begins > max(sentAt, end) {
			t.Errorf("wave %d is sent at %v and begins at %v, but the wave before ends at %v", i, sentAt, begins, end)
		}
		end = begins + waveInterval
	}
}

// A node that knows nothing of others uses its own limit.
func TestTheLastWaveRespectsTheHandshakeLimit(t *testing.T) {
	var p wavePacer
	if n := p.next(3000, 0, 0, 0, MoveTargets{HandshakeLimit: 500}); n != 400 {
		t.Errorf("a wave of %d, want 400", n)
	}
}

// Whatever the receivers report, a wave is never negative and never larger than
// what is left, and it grows again when they recover.
func TestWavesStayInBounds(t *testing.T) {
	var p wavePacer
	for i := range 10_000 {
		r := MoveTargets{Known: true, Ready: i % 3, HandshakeLimit: 1 + i%7, OtherHandshakes: i % 5, HandshakeP95: time.Duration(i%5) * time.Second}
		notAsked := i % 13
		if n := p.next(notAsked, i%11, i%5, time.Duration(i%4)*time.Second, r); n < 0 || n > notAsked && notAsked > 0 && n > minWave {
			t.Fatalf("step %d: wave of %d with %d not asked", i, n, notAsked)
		}
	}
	grown := 0
	for range 20 {
		grown = p.next(1000, 0, 0, 10*time.Second, healthyTargets)
	}
	if grown < 100 {
		t.Errorf("after 20 good waves a wave is %d, want 100", grown)
	}
}
