package drain

import (
	"math"
	"slices"
	"time"
)

// MoveTargets describes the nodes that receive the clients of a draining node. It
// is computed from the status of the nodes, which is about a second old.
type MoveTargets struct {
	// Known means that the status of the other nodes is known. Otherwise clients are moved
	// evenly over the window, limited by HandshakeLimit only.
	Known bool
	// SingleNode means that there can be no other node.
	SingleNode bool
	// Nodes is the number of other nodes that clients may move to, Ready the number
	// of them that accept connections, and DrainingNodes the number of other nodes
	// whose clients still have to move there.
	Nodes, Ready, DrainingNodes int
	// HandshakeLimit is how many handshakes per second the ready nodes accept
	// together, 0 if unknown. OtherHandshakes is their recent rate of handshakes
	// from clients that did not move there, RefusedHandshakes the rate of
	// handshakes that they refused.
	HandshakeLimit, OtherHandshakes, RefusedHandshakes int
	// HandshakeP95 is the 95th percentile of how long clients that moved there
	// recently waited for their welcome; 0 if unknown.
	HandshakeP95 time.Duration
	// ReturnsKnown means that the nodes count returning sessions. Returned is how
	// many of this node's sessions have returned on others since its start.
	ReturnsKnown bool
	Returned     int
}

const (
	// waveInterval is the time from one wave to the next.
	waveInterval = time.Second
	// slowHandshake is the latency at which waves become smaller, if it is also
	// twice the best latency: a distant client is slow on every node. At
	// tooSlowHandshake waves stop, because clients that wait so long retry and add
	// to the load.
	slowHandshake    = 250 * time.Millisecond
	tooSlowHandshake = 3 * time.Second
	// feedbackWaves is the number of waves after which the effect of a change is
	// visible: one for the move, two for the report, and some until the other nodes
	// drop older latencies.
	feedbackWaves = 4
	// maxMovingWaves is how many waves of clients may be moving at once.
	maxMovingWaves = 3
	// minWave is the smallest wave that is not empty, unless the other nodes accept, or
	// the node has, fewer clients.
	minWave = 5
	// returnDelayWaves is the number of waves after which a client that left should
	// be known to have returned: a client may take a second to reconnect, and its
	// old and its new node each publish once a second. After giveUpWaves it will
	// not return, or has no session by which it could be recognized.
	returnDelayWaves = 3
	giveUpWaves      = 12
	// targetLoad is the part of HandshakeLimit that moves use. The rest is for
	// clients that connect by themselves and were not counted yet.
	targetLoad = 0.8
	// A drain learns within discoveryWaves which other nodes drain. Until then it
	// assumes that assumedDrainingNodes drain, this node included.
	discoveryWaves       = 3
	assumedDrainingNodes = 3
)

// The reasons why waves are smaller or empty, as they are logged.
const (
	slowdownNoNode     = "no other node is ready"
	slowdownSlow       = "handshakes at the other nodes are slow"
	slowdownTooSlow    = "handshakes at the other nodes are too slow"
	slowdownNotLeaving = "clients that were asked do not leave"
	slowdownMissing    = "clients that left have not returned on other nodes"
	slowdownRefused    = "the other nodes refuse handshakes"
	slowdownFull       = "the other nodes accept no more handshakes"
)

// A returnTracker counts the clients that left and have not returned elsewhere in
// time. It belongs to the drain's goroutine.
type returnTracker struct {
	departed   []int // all clients that had left, by wave
	writtenOff int   // clients that are not waited for any more
}

// next takes how many clients have left and how many have returned so far, and
// returns how many are missing. known means that other nodes count returns.
func (t *returnTracker) next(departed, returned int, known bool) int {
	t.departed = append(t.departed, departed)
	before := func(waves int) int {
		if i := len(t.departed) - 1 - waves; i >= 0 {
			return t.departed[i]
		}
		return 0
	}
	// A client that did not return in time is written off for good. Otherwise a
	// later client would take its place in the count and be missing in turn.
	t.writtenOff = max(t.writtenOff, before(giveUpWaves)-returned)
	if !known {
		t.writtenOff = max(t.writtenOff, departed-returned)
		return 0
	}
	return max(0, before(returnDelayWaves)-returned-t.writtenOff)
}

// A wavePacer sizes the waves of a drain. A wave is as large as the window
// requires, and no larger than the receiving nodes accept. While they are slow it
// is half of the largest recent wave. It is empty while they are too slow, while the
// clients that were asked do not leave, or while those that left do not return
// there. It grows by a quarter after each wave without trouble. The pacer starts
// slowly, and after halving it waits for the effect, as TCP does for a round trip
// (RFC 5681 §3.1). The zero value is ready. It belongs to the drain's goroutine.
type wavePacer struct {
	allowed        float64          // the largest wave allowed
	halvedAt       int              // waveCount when it was last halved
	recent         [giveUpWaves]int // sizes of the last waves, the newest first
	waveCount      int              // number of waves so far
	bestHandshake  time.Duration    // the lowest HandshakeP95
	slowdownReason string           // why the last wave was smaller or empty, "" if it was not
}

// next returns how many clients to ask now. notAsked were not asked yet. moving were
// asked and are still connected. missing have disconnected and not returned in time.
// window is the remaining time.
func (p *wavePacer) next(notAsked, moving, missing int, window time.Duration, r MoveTargets) int {
	n := min(notAsked, p.size(notAsked, moving, missing, window, r))
	copy(p.recent[1:], p.recent[:])
	p.recent[0] = n
	p.waveCount++
	return n
}

// correctLast sets the size of the last wave to the number of clients that were
// really asked.
func (p *wavePacer) correctLast(n int) { p.recent[0] = n }

func (p *wavePacer) size(notAsked, moving, missing int, window time.Duration, r MoveTargets) int {
	waves := max(1, int(window/waveInterval))
	even := max((notAsked+waves-1)/waves, minWave)
	n := min(even, p.capacity(r))
	if !r.Known {
		p.slowdownReason = ""
		return n
	}
	if r.HandshakeP95 > 0 && (p.bestHandshake == 0 || r.HandshakeP95 < p.bestHandshake) {
		p.bestHandshake = r.HandshakeP95
	}
	reason, stop := p.checkTargets(moving, missing, r)
	switch {
	case p.allowed == 0: // later waves grow from the first of which the targets are known
		p.allowed = float64(n)
	case reason != "":
		p.halve()
	case p.recent[0] >= int(p.allowed):
		p.allowed *= 1.25
	}
	p.slowdownReason = reason
	switch {
	case stop:
		return 0
	case n > int(p.allowed):
		return int(p.allowed)
	case reason == "" && n < even:
		p.slowdownReason = slowdownFull
	}
	return n
}

// halve allows half of the largest recent wave. It does nothing until the effect of
// the last halving is visible.
func (p *wavePacer) halve() {
	if p.halvedAt > 0 && p.waveCount-p.halvedAt < feedbackWaves {
		return
	}
	p.allowed = max(float64(p.largestRecent(feedbackWaves))/2, minWave)
	p.halvedAt = p.waveCount
}

// checkTargets returns why waves must be smaller, and whether to send none. It
// compares counts of clients with the largest recent wave: after a small wave,
// clients of an earlier larger one may still be on their way.
func (p *wavePacer) checkTargets(moving, missing int, r MoveTargets) (reason string, stop bool) {
	maxMoving, maxMissing := p.largestRecent(int(moveGrace/waveInterval)), p.largestRecent(giveUpWaves)
	switch {
	case r.Ready == 0:
		return slowdownNoNode, true
	case r.HandshakeP95 >= tooSlowHandshake:
		return slowdownTooSlow, true
	case moving > maxMovingWaves*maxMoving:
		return slowdownNotLeaving, true
	case missing > 2*maxMissing:
		return slowdownMissing, true
	case r.RefusedHandshakes > 0:
		return slowdownRefused, false
	case r.HandshakeP95 >= max(slowHandshake, 2*p.bestHandshake):
		return slowdownSlow, false
	case missing > maxMissing:
		return slowdownMissing, false
	}
	return "", false
}

// largestRecent returns the largest of the last n waves.
func (p *wavePacer) largestRecent(n int) int {
	return max(minWave, slices.Max(p.recent[:n]))
}

// capacity returns how many clients the receiving nodes can accept from this node
// now: this node's share of HandshakeLimit after the handshakes of other clients.
// OtherHandshakes does not include moved clients, so a move does not slow itself,
// however late the reports are.
func (p *wavePacer) capacity(r MoveTargets) int {
	if r.HandshakeLimit == 0 {
		return math.MaxInt
	}
	sharers := 1 + r.DrainingNodes
	if r.Known && p.waveCount < discoveryWaves {
		sharers = max(sharers, assumedDrainingNodes)
	}
	return max(1, int(targetLoad*float64(r.HandshakeLimit)-float64(r.OtherHandshakes))/sharers)
}
