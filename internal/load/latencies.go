package load

import (
	"encoding/json"
	"math/bits"
	"time"
)

// Latencies count durations in buckets at most 3 % wide, from a microsecond to
// some hours, in a fixed 8 KiB. The zero value is empty.
type Latencies struct {
	buckets [latencyBuckets]int64
	count   int64
	max     time.Duration
}

const (
	// perDoubling buckets divide each doubling. Below twice as many microseconds
	// each has a bucket of its own.
	perDoubling    = 32
	latencyBuckets = 30 * perDoubling
)

// Add counts one duration; below zero counts as zero.
func (l *Latencies) Add(d time.Duration) {
	d = max(d, 0)
	l.buckets[bucketOf(d)]++
	l.count++
	l.max = max(l.max, d)
}

// Merge adds what others counted.
func (l *Latencies) Merge(o *Latencies) {
	for i, n := range o.buckets {
		l.buckets[i] += n
	}
	l.count += o.count
	l.max = max(l.max, o.max)
}

// Count is how many were added.
func (l *Latencies) Count() int64 { return l.count }

// Max is the longest.
func (l *Latencies) Max() time.Duration { return l.max }

// Quantile returns a duration that a share q of all does not exceed, 0 when
// there are none. It is the upper end of a bucket.
func (l *Latencies) Quantile(q float64) time.Duration {
	rank := int64(q * float64(l.count))
	if float64(rank) < q*float64(l.count) {
		rank++
	}
	var seen int64
	for i, n := range l.buckets {
		if seen += n; seen >= rank && n > 0 && i < latencyBuckets-1 {
			return min(upperEnd(i), l.max)
		}
	}
	return l.max
}

// bucketOf finds a duration's bucket; the last one takes all that is longer.
func bucketOf(d time.Duration) int {
	us := uint64(d.Microseconds())
	shift := max(bits.Len64(us)-6, 0)
	return min(shift*perDoubling+int(us>>shift), latencyBuckets-1)
}

// upperEnd is the longest duration in a bucket.
func upperEnd(bucket int) time.Duration {
	shift := max(bucket/perDoubling-1, 0)
	us := uint64(bucket-shift*perDoubling+1) << shift
	return time.Duration(us)*time.Microsecond - 1
}

// MarshalJSON writes the usual quantiles, in milliseconds.
func (l *Latencies) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"count": l.count, "p50_ms": milliseconds(l.Quantile(0.5)), "p95_ms": milliseconds(l.Quantile(0.95)),
		"p99_ms": milliseconds(l.Quantile(0.99)), "p999_ms": milliseconds(l.Quantile(0.999)), "max_ms": milliseconds(l.max),
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
