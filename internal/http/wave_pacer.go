package http

import (
	"math"
	"slices"
	"time"
)

// MoveTargets tells how the nodes do that take over what a draining node lets
// go. It comes from what the nodes tell each other, about a second old.
type MoveTargets struct {
	// Known says that the nodes can be seen at all; else clients are moved
	// evenly over the window, and nothing but Limit holds them back.
	Known bool
	// SingleNode says that there can be no other node.
	SingleNode bool
	// Nodes is how many others there are that clients may be moved to, Ready
	// how many of them take new connections, and DrainingNodes how many still have
	// clients to move there, as this one does.
	Nodes, Ready, DrainingNodes int
	// HandshakeLimit is how many handshakes a second the ready ones take together before
	// they refuse, 0 when that is not known. OtherHandshakes is how many they lately took
	// of clients that were not moved there, RefusedHandshakes how many they refused.
	HandshakeLimit, OtherHandshakes, RefusedHandshakes int
	// HandshakeP95 is the 95th percentile of how long clients lately waited for
	// their welcome there; 0 when none has said.
	HandshakeP95 time.Duration
	// ReturnsKnown says that the nodes count who comes back; Returned is how many of
	// this node's sessions did so on others, since its start.
	ReturnsKnown bool
	Returned     int
}

const (
	// waveInterval is the time from one wave to the next.
	waveInterval = time.Second
	// slowHandshake is when waves become smaller, if it is also twice what it was
	// at best: who is far away takes that long wherever he goes. At tooSlowHandshake
	// there are none: who waits for that asks again, and again.
	slowHandshake    = 250 * time.Millisecond
	tooSlowHandshake = 3 * time.Second
	// feedbackWaves is in how many waves what was changed can be seen: a wave takes
	// one, is told of in two, and the one before it counts for moveLatencyMaxAge.
	feedbackWaves = 4
	// maxMovingWaves is how many waves' worth of clients may be on their way at once.
	maxMovingWaves = 3
	// minWave is what a wave holds at least when it holds any.
	minWave = 5
	// returnDelayWaves is in how many waves a client that left here is known to have
	// come back: it has a second, and each of two nodes tells once a second.
	// After giveUpWaves it does not come any more, or has no session to be known by.
	returnDelayWaves = 3
	giveUpWaves      = 12
	// targetLoad is how much of the receivers' Limit is used: the rest is for who
	// comes by himself without having been seen yet.
	targetLoad = 0.8
	// A drain learns within discoveryWaves which other nodes drain; until then it
	// takes what it would take beside two.
	discoveryWaves = 3
)

// What holds a drain's waves back, as it is logged.
const (
	holdbackNoNode     = "no node is ready"
	holdbackSlow       = "handshakes there are slow"
	holdbackTooSlow    = "handshakes there take too long"
	holdbackNotLeaving = "those who were told do not leave"
	holdbackMissing    = "those who left are not seen there"
	holdbackRefused    = "handshakes there are refused"
	holdbackFull       = "no more handshakes are taken there"
)

// returnTracker tells how many clients that left have not come back elsewhere,
// though they had the time. It belongs to the drain's goroutine.
type returnTracker struct {
	departed   []int // all that had left, wave by wave
	writtenOff int   // of them, who is not waited for any more
}

// next takes how many have left and how many have come back by now, which can
// only be known while the nodes count.
func (a *returnTracker) next(departed, returned int, known bool) int {
	a.departed = append(a.departed, departed)
	before := func(waves int) int {
		if i := len(a.departed) - 1 - waves; i >= 0 {
			return a.departed[i]
		}
		return 0
	}
	// Who did not come in time will not: for good, since those who come later
	// would else fill the place of these and be missed in turn.
	a.writtenOff = max(a.writtenOff, before(giveUpWaves)-returned)
	if !known {
		a.writtenOff = max(a.writtenOff, departed-returned)
		return 0
	}
	return max(0, before(returnDelayWaves)-returned-a.writtenOff)
}

// A wavePacer sizes the waves of a drain: what is needed to be done within the window,
// no more than the receivers take, and less where they do badly: half of what was
// sent as long as they are slow, none while it is bad, while those who were told do
// not leave, or do not turn up elsewhere; a quarter more for each wave that went
// well. It begins slowly, halves once and looks what comes of it, as TCP does for a
// round trip (RFC 5681 §3.1). The zero value is ready. It belongs to the drain's
// goroutine.
type wavePacer struct {
	allowed       float64          // a wave at most
	halvedAt      int              // at which wave it was
	recent        [giveUpWaves]int // the last ones, the newest first
	waveCount     int              // of all waves
	bestHandshake time.Duration    // the shortest Handshake
	holdback      string           // what held the last one back, "" for nothing
}

// next returns how many clients to move now: left are still to be told, away
// were told and have not gone yet, missing have gone and not come back though
// they had the time, and the window goes on for so long.
func (p *wavePacer) next(left, moving, missing int, window time.Duration, r MoveTargets) int {
	n := min(left, p.size(left, moving, missing, window, r))
	copy(p.recent[1:], p.recent[:])
	p.recent[0] = n
	p.waveCount++
	return n
}

// correctLast corrects the last wave: so many were asked.
func (p *wavePacer) correctLast(n int) { p.recent[0] = n }

func (p *wavePacer) size(left, moving, missing int, window time.Duration, r MoveTargets) int {
	waves := max(1, int(window/waveInterval))
	even := max((left+waves-1)/waves, minWave)
	n := min(even, p.capacity(r))
	if !r.Known {
		p.holdback = ""
		return n
	}
	if r.HandshakeP95 > 0 && (p.bestHandshake == 0 || r.HandshakeP95 < p.bestHandshake) {
		p.bestHandshake = r.HandshakeP95
	}
	holdback, stop := p.checkTargets(moving, missing, r)
	switch {
	case p.waveCount == 0: // what follows grows from the first one
		p.allowed = float64(n)
	case holdback != "":
		p.halve()
	case p.recent[0] >= int(p.allowed):
		p.allowed *= 1.25
	}
	p.holdback = holdback
	switch {
	case stop:
		return 0
	case n > int(p.allowed):
		return int(p.allowed)
	case holdback == "" && n < even:
		p.holdback = holdbackFull
	}
	return n
}

// halve allows half of what was sent of late, once until that can be seen.
func (p *wavePacer) halve() {
	if p.halvedAt > 0 && p.waveCount-p.halvedAt < feedbackWaves {
		return
	}
	p.allowed = max(float64(p.largestRecent(feedbackWaves))/2, minWave)
	p.halvedAt = p.waveCount
}

// checkTargets says what is wrong on the receiving side, and whether it is so bad that
// nobody is to be sent there. Numbers of clients are held against the largest
// wave that they may be of: a small one that follows is no reason to wait longer.
func (p *wavePacer) checkTargets(moving, missing int, r MoveTargets) (holdback string, stop bool) {
	maxMoving, maxGone := p.largestRecent(int(moveGrace/waveInterval)), p.largestRecent(giveUpWaves)
	switch {
	case r.Ready == 0:
		return holdbackNoNode, true
	case r.HandshakeP95 >= tooSlowHandshake:
		return holdbackTooSlow, true
	case moving > maxMovingWaves*maxMoving:
		return holdbackNotLeaving, true
	case missing > 2*maxGone:
		return holdbackMissing, true
	case r.RefusedHandshakes > 0:
		return holdbackRefused, false
	case r.HandshakeP95 >= max(slowHandshake, 2*p.bestHandshake):
		return holdbackSlow, false
	case missing > maxGone:
		return holdbackMissing, false
	}
	return "", false
}

// largestRecent is the largest of the last n waves.
func (p *wavePacer) largestRecent(n int) int {
	return max(minWave, slices.Max(p.recent[:n]))
}

// capacity is how many the receivers can take now from this node: its part of what
// others leave of their Limit. What was moved there is no part of Others, so
// that a move does not stand in its own way, however late that is told.
func (p *wavePacer) capacity(r MoveTargets) int {
	if r.HandshakeLimit == 0 {
		return math.MaxInt
	}
	sharers := 1 + r.DrainingNodes
	if r.Known && p.waveCount < discoveryWaves {
		sharers = max(sharers, discoveryWaves)
	}
	return max(1, int(targetLoad*float64(r.HandshakeLimit)-float64(r.OtherHandshakes))/sharers)
}
