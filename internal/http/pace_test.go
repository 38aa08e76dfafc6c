package http

import (
	"testing"
	"time"
)

var well = Receivers{Known: true, Nodes: 1, Ready: 1, Headroom: 10_000, Handshake: 20 * time.Millisecond}

func TestWithoutKnowledgeWavesAreEven(t *testing.T) {
	var p pace
	left := 1000
	for second := range 10 {
		n := p.next(left, left, 0, time.Duration(10-second)*time.Second, Receivers{})
		if n != 100 {
			t.Errorf("second %d: %d of %d", second, n, left)
		}
		left -= n
	}
	if left != 0 {
		t.Errorf("%d left", left)
	}
	if n := p.next(3, 0, 0, time.Minute, Receivers{}); n != 3 {
		t.Errorf("few clients are one wave, not %d", n)
	}
	if n := p.next(500, 0, 0, 0, Receivers{}); n != 500 {
		t.Errorf("at the end of the window all are told, not %d", n)
	}
}

func TestWavesFollowTheReceivers(t *testing.T) {
	with := func(change func(*Receivers)) Receivers { r := well; change(&r); return r }
	slow := with(func(r *Receivers) { r.Handshake = time.Second })
	bad := with(func(r *Receivers) { r.Handshake = 5 * time.Second })
	nobody := with(func(r *Receivers) { r.Ready = 0 })
	full := with(func(r *Receivers) { r.Headroom = 40 })

	var p pace
	const left = 10_000
	window := 100 * time.Second // even: 100 a wave
	steps := []struct {
		name          string
		away, missing int
		r             Receivers
		want          int
	}{
		{"well: a little more than even", 0, 0, well, 150},
		{"again", 0, 0, well, 225},
		{"slow: half", 0, 0, slow, 112},
		{"slower and slower", 0, 0, slow, 56},
		{"bad: none", 0, 0, bad, 0},
		{"still bad", 0, 0, bad, 0},
		{"recovered: from where it was left", 0, 0, well, 21},
		{"and up", 0, 0, well, 31},
		{"nobody ready: none", 0, 0, nobody, 0},
		{"those who were told do not arrive: none", 500, 0, well, 0},
		{"they did: on", 0, 0, well, 11},
		{"half a wave has not come back: half", 0, 6, well, 6},
		{"a whole one has not: none", 0, 12, well, 0},
		{"they have", 0, 0, well, 9},
		{"no more than the receivers take", 0, 0, full, 14},
		{"nor together with those under way", 30, 0, full, 10},
	}
	for _, s := range steps {
		if got := p.next(left, s.away, s.missing, window, s.r); got != s.want {
			t.Errorf("%s: %d, want %d", s.name, got, s.want)
		}
	}
}

// However the receivers do, a wave is never negative, never more than there
// are, and they get a chance to recover.
func TestWavesStayInBounds(t *testing.T) {
	var p pace
	for i := range 10_000 {
		r := Receivers{Known: true, Ready: i % 3, Headroom: i % 7, Handshake: time.Duration(i%5) * time.Second}
		left := i % 13
		if n := p.next(left, i%11, i%5, time.Duration(i%4)*time.Second, r); n < 0 || n > left && left > 0 && n > leastWave {
			t.Fatalf("step %d: wave of %d with %d left", i, n, left)
		}
	}
	grown := 0
	for range 20 {
		grown = p.next(1000, 0, 0, 10*time.Second, well)
	}
	if grown < 100 {
		t.Errorf("20 good waves later still %d a wave", grown)
	}
}
