package http

import "time"

// Receivers tells how the nodes do that take over what a draining node lets
// go. It comes from what the nodes tell each other, about a second old.
type Receivers struct {
	// Known says that the nodes can be seen at all; else clients are moved
	// evenly over the window, and nothing holds them back.
	Known bool
	// Nodes is how many others there are that clients may be moved to, Ready
	// how many of them take new connections.
	Nodes, Ready int
	// Headroom is how many more handshakes a second the ready ones take
	// together before they refuse.
	Headroom int
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
	// slowHandshake and badHandshake are when waves become smaller, and when
	// there are none: with half a second a move still goes unnoticed, and who
	// waits for three has become a reason to ask again, and again.
	slowHandshake = 500 * time.Millisecond
	badHandshake  = 3 * time.Second
	// patience is how many waves' worth of clients may be on their way at once.
	patience = 3
	// leastWave is what a wave holds at least when it holds any.
	leastWave = 5
	// returnWaves is in how many waves a client that left here is known to have
	// come back: it has a second, and each of two nodes tells once a second.
	// After lostWaves it does not come any more, or has no session to be known by.
	returnWaves = 3
	lostWaves   = 12
)

// absences tells how many clients that left have not come back elsewhere,
// though they had the time. It belongs to the drain's goroutine.
type absences struct {
	gone []int // all that had left, wave by wave
}

// next takes how many have left and how many have come back by now.
func (a *absences) next(gone, returned int) int {
	a.gone = append(a.gone, gone)
	before := func(waves int) int {
		if i := len(a.gone) - 1 - waves; i >= 0 {
			return a.gone[i]
		}
		return 0
	}
	return max(0, before(returnWaves)-max(returned, before(lostWaves)))
}

// A pace sizes the waves of a drain by how the receiving side does: smaller by
// half while it is slow, none while it is bad or while those who were told do
// not leave, or do not turn up elsewhere, and half as large again for each wave that went well. The zero
// value begins with an even spread. It belongs to the drain's goroutine.
type pace struct {
	share float64 // of the even spread; 0 stands for 1
	told  int     // the last wave's size
}

// next returns how many clients to move now: left are still to be told, away
// were told and have not gone yet, missing have gone and not come back though
// they had the time, and the window goes on for so long.
func (p *pace) next(left, away, missing int, window time.Duration, r Receivers) int {
	waves := max(1, int(window/waveEvery))
	even := max((left+waves-1)/waves, min(left, leastWave))
	if !r.Known {
		return even
	}
	if p.share == 0 {
		p.share = 1
	}
	bad := r.Ready == 0 || r.Handshake >= badHandshake ||
		away > patience*max(p.told, leastWave) || missing > max(p.told, leastWave)
	switch {
	case bad, r.Handshake >= slowHandshake, 2*missing > max(p.told, leastWave):
		p.share = max(p.share/2, 1.0/16)
	default:
		p.share = min(p.share*1.5, 4)
	}
	if bad {
		return 0
	}
	n := max(int(float64(even)*p.share), leastWave)
	p.told = min(n, left, max(r.Headroom-away, 1))
	return p.told
}
