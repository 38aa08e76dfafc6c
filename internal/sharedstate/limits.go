package sharedstate

import (
	"hash/maphash"
	"math"
	"sync"
	"time"
)

const (
	// limitShards is among how many locks users are shared.
	limitShards = 16
	// maxBuckets bounds the users that are counted at the same time. One too
	// many is not limited over all nodes, and that is told.
	maxBuckets = 200_000
	// maxDebt bounds for how long a user is kept waiting for what several nodes
	// gave at the same time.
	maxDebt = time.Minute
	// syncFraction says after which part of a burst a spending is shared at once,
	// and below which part that is left every one is.
	syncFraction, lowFraction = 8, 2
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
	measureCount
)

// A rate is one measure's bound.
type rate struct{ perSecond, burst float64 }

func (r Rates) byMeasure() [measureCount]rate {
	bound := func(each, burst float64) rate {
		if each <= 0 || math.IsNaN(each) || math.IsInf(each, 0) {
			return rate{}
		}
		if burst <= 0 {
			burst = 2 * each
		}
		return rate{each, max(burst, 1)}
	}
	return [measureCount]rate{
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
	node       *Node
	rates      [measureCount]rate
	seed       maphash.Seed
	shards     [limitShards]limitShard
	disabled   bool
	shardSizes [limitShards]int // how many users each shard has; limitLoop's
}

type limitShard struct {
	mu      sync.Mutex // Protects following.
	buckets map[string]*userBucket
	queue   []string // to be shared, each once
}

// A userBucket is a user's bucket on one node.
type userBucket struct {
	level      [measureCount]float64 // at
	at         time.Time
	spent      [measureCount]float64 // and not shared yet
	spentSince time.Time             // when the first of that was
	queued     bool
}

func newLimits(n *Node, r Rates) *limits {
	l := &limits{node: n, rates: r.byMeasure(), seed: maphash.MakeSeed()}
	l.disabled = l.rates == [measureCount]rate{}
	for i := range l.shards {
		l.shards[i].buckets = make(map[string]*userBucket)
	}
	return l
}

// AllowPublish books a publish or signal of so many bytes of data on its user, over
// all nodes, and returns 0; or books nothing and returns after which time it
// would go through. It never blocks. Anonymous users share a name and not a
// limit: what bounds them is their connection's.
func (n *Node) AllowPublish(user string, bytes int) (wait time.Duration) {
	l := n.limits
	if l.disabled || user == "" {
		return 0
	}
	shard := l.shard(user)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	s := shard.buckets[user]
	if s == nil {
		if len(shard.buckets) >= maxBuckets/limitShards {
			n.metrics.drop(dropBucketsFull, 1)
			return 0
		}
		s = &userBucket{at: now}
		for m, r := range l.rates {
			s.level[m] = r.burst
		}
		shard.buckets[user] = s
	}
	s.refill(&l.rates, now)
	wait = s.spend(&l.rates, [measureCount]float64{measurePublishes: 1, measureBytes: float64(bytes)})
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

func (s *userBucket) refill(rates *[measureCount]rate, now time.Time) {
	passed := now.Sub(s.at).Seconds()
	s.at = now
	for m, r := range rates {
		s.level[m] = min(r.burst, s.level[m]+r.perSecond*passed)
	}
}

// spend spends all or nothing. What is larger than a burst waits for a full
// bucket, and leaves a debt.
func (s *userBucket) spend(rates *[measureCount]rate, want [measureCount]float64) (wait time.Duration) {
	for m, r := range rates {
		if missing := min(want[m], r.burst) - s.level[m]; r.perSecond > 0 && missing > 0 {
			seconds := time.Duration(math.Ceil(missing / r.perSecond * float64(time.Second)))
			wait = max(wait, seconds, time.Millisecond)
		}
	}
	if wait > 0 {
		return wait
	}
	if s.spent == [measureCount]float64{} {
		s.spentSince = s.at
	}
	for m, r := range rates {
		if r.perSecond > 0 {
			s.level[m] -= want[m]
			s.spent[m] += want[m]
		}
	}
	return 0
}

// isDue says whether what was spent is worth a round trip now.
func (s *userBucket) isDue(rates *[measureCount]rate) bool {
	for m, r := range rates {
		if s.spent[m] > 0 && (s.spent[m] >= r.burst/syncFraction || s.level[m] < r.burst/lowFraction) {
			return true
		}
	}
	return false
}

// isIdle says whether there is nothing to remember of a user.
func (s *userBucket) isIdle(rates *[measureCount]rate) bool {
	for m, r := range rates {
		if s.level[m] < r.burst {
			return false
		}
	}
	return !s.queued
}
