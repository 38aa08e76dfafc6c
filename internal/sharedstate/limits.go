package sharedstate

import (
	"hash/maphash"
	"math"
	"sync"
	"time"
)

const (
	// limitShards is the number of maps, each with a lock, that hold the users.
	limitShards = 16
	// maxBuckets bounds the users who are counted at the same time. Users beyond
	// it are not limited over all nodes; session_dropped_total counts them.
	maxBuckets = 200_000
	// maxDebt bounds how long a user waits after several nodes together let too
	// much through.
	maxDebt = time.Minute
	// A user's usage is synced once it is at least burst/syncFraction, and always
	// while the level is below burst/lowFraction.
	syncFraction, lowFraction = 8, 2
)

// Rates limit what one user does over all nodes together. A rate of 0 is no limit.
type Rates struct {
	// Calls, such as publishes or reads, and bytes of their data, a second.
	Calls, Bytes float64
	// The bursts may be spent at once; 0 means two seconds of the rate.
	CallBurst, ByteBurst float64
}

// The measures that are limited: indexes of arrays of measureCount.
const (
	measureCalls = iota
	measureBytes
	measureCount
)

// amounts are of each measure.
type amounts = [measureCount]float64

// A rate limits one measure. The zero rate means no limit.
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
		measureCalls: bound(r.Calls, r.CallBurst),
		measureBytes: bound(r.Bytes, r.ByteBurst),
	}
}

// limits holds this node's estimate of each user's bucket. It decides without a
// round trip, and limitLoop corrects it four times a second. It is safe for
// concurrent use.
//
// Over any time t, n nodes together give a user at most
//
//	burst + rate·t + (n-1)·(burst + rate·T)
//
// where T is the time from one sync to the next, 250 ms and a round trip: each
// node may let through what was left at its last sync. The excess becomes a
// debt on the bucket that all nodes wait for, so it happens once and does not
// repeat.
type limits struct {
	node       *Node
	prefix     string // of the users' keys in the backend
	rates      [measureCount]rate
	seed       maphash.Seed
	shards     [limitShards]limitShard
	maxUsers   int // of a shard: of maxBuckets, unless a test changes it
	disabled   bool
	shardSizes [limitShards]int // users of each shard; owned by limitLoop
}

// A limitShard holds the buckets of the users whose names hash to it.
type limitShard struct {
	mu      sync.Mutex // Protects following.
	buckets map[string]*userBucket
	queue   []string // users to sync, each once
}

// A userBucket is a token bucket of one user. A node's is an estimate of the
// backend's.
type userBucket struct {
	level      [measureCount]float64 // at the time at; below 0 it is a debt
	at         time.Time
	spent      [measureCount]float64 // since the last sync
	spentSince time.Time             // the beginning of spent
	queued     bool                  // the user is in the shard's queue
}

func newLimits(n *Node, prefix string, r Rates) *limits {
	l := &limits{node: n, prefix: prefix, rates: r.byMeasure(), seed: maphash.MakeSeed(), maxUsers: maxBuckets / limitShards}
	l.disabled = l.rates == [measureCount]rate{}
	for i := range l.shards {
		l.shards[i].buckets = make(map[string]*userBucket)
	}
	return l
}

// AllowPublish charges the user for a publish or signal with that many bytes of
// data, and returns 0. If the user's limit over all nodes does not allow it, it
// charges nothing and returns the time until it would. It never blocks.
// Anonymous users, whose name is "", are not limited here: their connections
// are.
func (n *Node) AllowPublish(user string, bytes int) (wait time.Duration) {
	return n.publishLimits.take(user, amounts{measureCalls: 1, measureBytes: float64(bytes)})
}

// AllowRead charges a reader, a user or an address, for a read whose size is not known yet,
// as AllowPublish does for a publish. A reader that owes bytes waits until they are paid.
func (n *Node) AllowRead(reader string) (wait time.Duration) {
	return n.readLimits.take(reader, amounts{measureCalls: 1})
}

// ReadDebt returns how long a reader must wait until the bytes of its reads are paid. It
// never blocks.
func (n *Node) ReadDebt(reader string) (wait time.Duration) {
	n.readLimits.visit(reader, func(b *userBucket) { wait = b.spend(&n.readLimits.rates, amounts{}) })
	return wait
}

// ChargeRead charges a reader for the bytes of a read, whatever is left: what follows waits.
func (n *Node) ChargeRead(reader string, bytes int) {
	n.readLimits.charge(reader, amounts{measureBytes: float64(bytes)})
}

// take charges a user and returns 0, or charges nothing and returns the time until it
// could.
func (l *limits) take(user string, want amounts) (wait time.Duration) {
	l.visit(user, func(b *userBucket) {
		if wait = b.spend(&l.rates, want); wait > 0 {
			l.node.metrics.refused.Inc()
		}
	})
	return wait
}

// charge charges a user, whose level may fall below 0.
func (l *limits) charge(user string, spent amounts) {
	l.visit(user, func(b *userBucket) { b.charge(&l.rates, spent) })
}

// visit calls f with the bucket of a user, with its lock held, unless there are too many.
func (l *limits) visit(user string, f func(*userBucket)) {
	if l.disabled || user == "" {
		return
	}
	shard := l.shard(user)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	b := shard.buckets[user]
	if b == nil {
		if len(shard.buckets) >= l.maxUsers {
			l.node.metrics.drop(dropBucketsFull, 1)
			return
		}
		b = &userBucket{at: now}
		for m, r := range l.rates {
			b.level[m] = r.burst
		}
		shard.buckets[user] = b
	}
	b.refill(&l.rates, now)
	f(b)
	if !b.queued && b.isDue(&l.rates) {
		b.queued = true
		shard.queue = append(shard.queue, user)
	}
}

func (l *limits) shard(user string) *limitShard {
	return &l.shards[maphash.String(l.seed, user)%limitShards]
}

// refill adds what the time since at is worth.
func (b *userBucket) refill(rates *[measureCount]rate, now time.Time) {
	passed := now.Sub(b.at).Seconds()
	b.at = now
	for m, r := range rates {
		b.level[m] = min(r.burst, b.level[m]+r.perSecond*passed)
	}
}

// spend takes the wanted amounts, or takes nothing and returns the time until
// they are there. An amount above the burst needs only a full bucket, and leaves
// a debt.
func (b *userBucket) spend(rates *[measureCount]rate, want amounts) (wait time.Duration) {
	for m, r := range rates {
		if missing := min(want[m], r.burst) - b.level[m]; r.perSecond > 0 && missing > 0 {
			seconds := time.Duration(math.Ceil(missing / r.perSecond * float64(time.Second)))
			wait = max(wait, seconds, time.Millisecond)
		}
	}
	if wait == 0 {
		b.charge(rates, want)
	}
	return wait
}

// charge takes the amounts, and leaves a debt of at most maxDebt if they are not there.
func (b *userBucket) charge(rates *[measureCount]rate, spent amounts) {
	if b.spent == (amounts{}) {
		b.spentSince = b.at
	}
	for m, r := range rates {
		if r.perSecond > 0 {
			b.level[m] = max(b.level[m]-spent[m], -r.perSecond*maxDebt.Seconds())
			b.spent[m] += spent[m]
		}
	}
}

// isDue reports whether the usage is large enough to sync now.
func (b *userBucket) isDue(rates *[measureCount]rate) bool {
	for m, r := range rates {
		if b.spent[m] > 0 && (b.spent[m] >= r.burst/syncFraction || b.level[m] < r.burst/lowFraction) {
			return true
		}
	}
	return false
}

// isIdle reports whether the bucket is full, so that a new one would be equal.
func (b *userBucket) isIdle(rates *[measureCount]rate) bool {
	for m, r := range rates {
		if b.level[m] < r.burst {
			return false
		}
	}
	return !b.queued
}
