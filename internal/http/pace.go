package http

import (
	"math"
	"slices"
	"time"
)

// Receivers tells how the nodes do that take over what a draining node lets
// go. It comes from what the nodes tell each other, about a second old.
type Receivers struct {
	// Known says that the nodes can be seen at all; else clients are moved
	// evenly over the window, and nothing but Limit holds them back.
	Known bool
	// Alone says that there can be no other node.
	Alone bool
	// Nodes is how many others there are that clients may be moved to, Ready
	// how many of them take new connections, and Drainers how many still have
	// clients to move there, as this one does.
	Nodes, Ready, Drainers int
	// Limit is how many handshakes a second the ready ones take together before
	// they refuse, 0 when that is not known. Others is how many they lately took
	// of clients that were not moved there, Refused how many they refused.
	Limit, Others, Refused int
	// Handshake is the 95th percentile of how long clients lately waited for
	// their welcome there; 0 when none has said.
	Handshake time.Duration
	// Counts says that the nodes count who comes back; Returned is how many of
	// this node's sessions did so on others, since its start.
	Counts   bool
	Returned int
}

const (
	// waveEvery is the time from one wave to the next.
	waveEvery = time.Second
	// slowHandshake is when waves become smaller, if it is also twice what it was
	// at best: who is far away takes that long wherever he goes. At badHandshake
	// there are none: who waits for that asks again, and again.
	slowHandshake = 250 * time.Millisecond
	badHandshake  = 3 * time.Second
	// reactWaves is in how many waves what was changed can be seen: a wave takes
	// one, is told of in two, and the one before it counts for arrivalsAge.
	reactWaves = 4
	// patience is how many waves' worth of clients may be on their way at once.
	patience = 3
	// leastWave is what a wave holds at least when it holds any.
	leastWave = 5
	// returnWaves is in how many waves a client that left here is known to have
	// come back: it has a second, and each of two nodes tells once a second.
	// After lostWaves it does not come any more, or has no session to be known by.
	returnWaves = 3
	lostWaves   = 12
	// fill is how much of the receivers' Limit is used: the rest is for who
	// comes by himself without having been seen yet.
	fill = 0.8
	// A drain learns within firstWaves which other nodes drain; until then it
	// takes what it would take beside two.
	firstWaves = 3
)

// What holds a drain's waves back, as it is logged.
const (
	heldNobody  = "no node is ready"
	heldSlow    = "handshakes there are slow"
	heldBad     = "handshakes there take too long"
	heldStay    = "those who were told do not leave"
	heldMissing = "those who left are not seen there"
	heldRefused = "handshakes there are refused"
	heldFull    = "no more handshakes are taken there"
)

// absences tells how many clients that left have not come back elsewhere,
// though they had the time. It belongs to the drain's goroutine.
type absences struct {
	gone []int // all that had left, wave by wave
	lost int   // of them, who is not waited for any more
}

// next takes how many have left and how many have come back by now, which can
// only be known while the nodes count.
func (a *absences) next(gone, returned int, counts bool) int {
	a.gone = append(a.gone, gone)
	before := func(waves int) int {
		if i := len(a.gone) - 1 - waves; i >= 0 {
			return a.gone[i]
		}
		return 0
	}
	// Who did not come in time will not: for good, since those who come later
	// would else fill the place of these and be missed in turn.
	a.lost = max(a.lost, before(lostWaves)-returned)
	if !counts {
		a.lost = max(a.lost, gone-returned)
		return 0
	}
	return max(0, before(returnWaves)-returned-a.lost)
}

// A pace sizes the waves of a drain: what is needed to be done within the window,
// no more than the receivers take, and less where they do badly: half of what was
// sent as long as they are slow, none while it is bad, while those who were told do
// not leave, or do not turn up elsewhere; a quarter more for each wave that went
// well. It begins slowly, halves once and looks what comes of it, as TCP does for a
// round trip (RFC 5681 §3.1). The zero value is ready. It belongs to the drain's
// goroutine.
type pace struct {
	allowed float64        // a wave at most
	halved  int            // at which wave it was
	waves   [lostWaves]int // the last ones, the newest first
	count   int            // of all waves
	best    time.Duration  // the shortest Handshake
	held    string         // what held the last one back, "" for nothing
}

// next returns how many clients to move now: left are still to be told, away
// were told and have not gone yet, missing have gone and not come back though
// they had the time, and the window goes on for so long.
func (p *pace) next(left, away, missing int, window time.Duration, r Receivers) int {
	n := min(left, p.size(left, away, missing, window, r))
	copy(p.waves[1:], p.waves[:])
	p.waves[0] = n
	p.count++
	return n
}

// sent corrects the last wave: so many were asked.
func (p *pace) sent(n int) { p.waves[0] = n }

func (p *pace) size(left, away, missing int, window time.Duration, r Receivers) int {
	waves := max(1, int(window/waveEvery))
	even := max((left+waves-1)/waves, leastWave)
	n := min(even, p.room(r))
	if !r.Known {
		p.held = ""
		return n
	}
	if r.Handshake > 0 && (p.best == 0 || r.Handshake < p.best) {
		p.best = r.Handshake
	}
	held, bad := p.judge(away, missing, r)
	switch {
	case p.count == 0: // what follows grows from the first one
		p.allowed = float64(n)
	case held != "":
		p.halve()
	case p.waves[0] >= int(p.allowed):
		p.allowed *= 1.25
	}
	p.held = held
	switch {
	case bad:
		return 0
	case n > int(p.allowed):
		return int(p.allowed)
	case held == "" && n < even:
		p.held = heldFull
	}
	return n
}

// halve allows half of what was sent of late, once until that can be seen.
func (p *pace) halve() {
	if p.halved > 0 && p.count-p.halved < reactWaves {
		return
	}
	p.allowed = max(float64(p.largest(reactWaves))/2, leastWave)
	p.halved = p.count
}

// judge says what is wrong on the receiving side, and whether it is so bad that
// nobody is to be sent there. Numbers of clients are held against the largest
// wave that they may be of: a small one that follows is no reason to wait longer.
func (p *pace) judge(away, missing int, r Receivers) (held string, bad bool) {
	onTheirWay, parted := p.largest(int(onTheWay/waveEvery)), p.largest(lostWaves)
	switch {
	case r.Ready == 0:
		return heldNobody, true
	case r.Handshake >= badHandshake:
		return heldBad, true
	case away > patience*onTheirWay:
		return heldStay, true
	case missing > 2*parted:
		return heldMissing, true
	case r.Refused > 0:
		return heldRefused, false
	case r.Handshake >= max(slowHandshake, 2*p.best):
		return heldSlow, false
	case missing > parted:
		return heldMissing, false
	}
	return "", false
}

// largest is the largest of the last n waves.
func (p *pace) largest(n int) int {
	return max(leastWave, slices.Max(p.waves[:n]))
}

// room is how many the receivers can take now from this node: its part of what
// others leave of their Limit. What was moved there is no part of Others, so
// that a move does not stand in its own way, however late that is told.
func (p *pace) room(r Receivers) int {
	if r.Limit == 0 {
		return math.MaxInt
	}
	each := 1 + r.Drainers
	if r.Known && p.count < firstWaves {
		each = max(each, firstWaves)
	}
	return max(1, int(fill*float64(r.Limit)-float64(r.Others))/each)
}
