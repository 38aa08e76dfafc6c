package session

import (
	"hash/maphash"
	"math"
	"sync"
	"time"
)

const (
	// limitShards is among how many locks users are shared.
	limitShards = 16
	// maxSpenders bounds the users that are counted at the same time. One too
	// many is not limited over all nodes, and that is told.
	maxSpenders = 200_000
	// maxDebt bounds for how long a user is kept waiting for what several nodes
	// gave at the same time.
	maxDebt = time.Minute
	// shareOf says after which part of a burst a spending is shared at once,
	// and below which part that is left every one is.
	shareOf, hotBelow = 8, 2
)

// Rates bound what one user spends over all nodes together. A rate of 0 is no
// bound.
type Rates struct {
	// Publishes a second, and Bytes of their data.
	Publishes, Bytes float64
	// Bursts are what may be spent at once; two seconds' worth when 0.
	PublishBurst, ByteBurst float64
}

// What is measured: an index of the arrays below.
const (
	measurePublishes = iota
	measureBytes
	measures
)

// A rate is one measure's bound.
type rate struct{ each, burst float64 }

func (r Rates) byMeasure() [measures]rate {
	bound := func(each, burst float64) rate {
		if each <= 0 || math.IsNaN(each) || math.IsInf(each, 0) {
			return rate{}
		}
		if burst <= 0 {
			burst = 2 * each
		}
		return rate{each, max(burst, 1)}
	}
	return [measures]rate{
		measurePublishes: bound(r.Publishes, r.PublishBurst),
		measureBytes:     bound(r.Bytes, r.ByteBurst),
	}
}

// limits is what users have left, as far as this node knows. It decides
// without asking anybody, and limitLoop puts it right four times a second.
//
// Over any time t, n nodes together give a user at most
//
//	burst + rate·t + (n-1)·(burst + rate·T)
//
// where T is the time from one sharing to the next, 250 ms and a round trip:
// each may give what was there when it looked last. What was given too much is
// a debt that all wait for, so that it happens once and not again and again.
type limits struct {
	node   *Node
	rates  [measures]rate
	seed   maphash.Seed
	shards [limitShards]limitShard
	off    bool
	sizes  [limitShards]int // how many users each shard has; limitLoop's
}

type limitShard struct {
	mu       sync.Mutex // Protects following.
	spenders map[string]*spender
	queue    []string // to be shared, each once
}

// A spender is a user's bucket on one node.
type spender struct {
	level  [measures]float64 // at
	at     time.Time
	spent  [measures]float64 // and not shared yet
	since  time.Time         // when the first of that was
	queued bool
}

func newLimits(n *Node, r Rates) *limits {
	l := &limits{node: n, rates: r.byMeasure(), seed: maphash.MakeSeed()}
	l.off = l.rates == [measures]rate{}
	for i := range l.shards {
		l.shards[i].spenders = make(map[string]*spender)
	}
	return l
}

// Publish books a publish or signal of so many bytes of data on its user, over
// all nodes, and returns 0; or books nothing and returns after which time it
// would go through. It never blocks. Anonymous users share a name and not a
// limit: what bounds them is their connection's.
func (n *Node) Publish(user string, bytes int) (wait time.Duration) {
	l := n.limits
	if l.off || user == "" {
		return 0
	}
	shard := l.shard(user)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	s := shard.spenders[user]
	if s == nil {
		if len(shard.spenders) >= maxSpenders/limitShards {
			n.metrics.drop(dropSpenders, 1)
			return 0
		}
		s = &spender{at: now}
		for m, r := range l.rates {
			s.level[m] = r.burst
		}
		shard.spenders[user] = s
	}
	s.refill(&l.rates, now)
	wait = s.take(&l.rates, [measures]float64{measurePublishes: 1, measureBytes: float64(bytes)})
	if wait > 0 {
		n.metrics.refused.Inc()
	}
	if !s.queued && s.isDue(&l.rates) {
		s.queued = true
		shard.queue = append(shard.queue, user)
	}
	return wait
}

func (l *limits) shard(user string) *limitShard {
	return &l.shards[maphash.String(l.seed, user)%limitShards]
}

func (s *spender) refill(rates *[measures]rate, now time.Time) {
	passed := now.Sub(s.at).Seconds()
	s.at = now
	for m, r := range rates {
		s.level[m] = min(r.burst, s.level[m]+r.each*passed)
	}
}

// take spends all or nothing. What is larger than a burst waits for a full
// bucket, and leaves a debt.
func (s *spender) take(rates *[measures]rate, want [measures]float64) (wait time.Duration) {
	for m, r := range rates {
		if missing := min(want[m], r.burst) - s.level[m]; r.each > 0 && missing > 0 {
			seconds := time.Duration(math.Ceil(missing / r.each * float64(time.Second)))
			wait = max(wait, seconds, time.Millisecond)
		}
	}
	if wait > 0 {
		return wait
	}
	if s.spent == [measures]float64{} {
		s.since = s.at
	}
	for m, r := range rates {
		if r.each > 0 {
			s.level[m] -= want[m]
			s.spent[m] += want[m]
		}
	}
	return 0
}

// isDue says whether what was spent is worth a round trip now.
func (s *spender) isDue(rates *[measures]rate) bool {
	for m, r := range rates {
		if s.spent[m] > 0 && (s.spent[m] >= r.burst/shareOf || s.level[m] < r.burst/hotBelow) {
			return true
		}
	}
	return false
}

// isIdle says whether there is nothing to remember of a user.
func (s *spender) isIdle(rates *[measures]rate) bool {
	for m, r := range rates {
		if s.level[m] < r.burst {
			return false
		}
	}
	return !s.queued
}
