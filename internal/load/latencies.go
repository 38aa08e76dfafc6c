package load

import (
	"encoding/json"
	"math/bits"
	"time"
)

// Latencies is a histogram of durations. Its buckets are at most 3% wide, from a
// microsecond to some hours, and take a fixed 8 KiB. The zero value is empty. It
// is not safe for concurrent use.
type Latencies struct {
	buckets [latencyBuckets]int64
	count   int64
	max     time.Duration
}

const (
	// perDoubling is the number of buckets in each doubling of the duration. Each
	// microsecond below 2*perDoubling has a bucket of its own.
	perDoubling    = 32
	latencyBuckets = 30 * perDoubling
)

// Add counts one duration. A negative one counts as zero.
func (l *Latencies) Add(d time.Duration) {
	d = max(d, 0)
	l.buckets[bucketOf(d)]++
	l.count++
	l.max = max(l.max, d)
}

// Merge adds all durations of another histogram.
func (l *Latencies) Merge(o *Latencies) {
	for i, n := range o.buckets {
		l.buckets[i] += n
	}
	l.count += o.count
	l.max = max(l.max, o.max)
}

// Count returns the number of durations.
func (l *Latencies) Count() int64 { return l.count }

// Max returns the longest duration.
func (l *Latencies) Max() time.Duration { return l.max }

// Quantile returns the upper end of the bucket that holds the quantile q, at most
// Max, or 0 if there are no durations.
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

// bucketOf returns the index of a duration's bucket. The last bucket has no upper
// end.
func bucketOf(d time.Duration) int {
	us := uint64(d.Microseconds())
	shift := max(bits.Len64(us)-6, 0)
	return min(shift*perDoubling+int(us>>shift), latencyBuckets-1)
}

// upperEnd returns the longest duration of a bucket.
func upperEnd(bucket int) time.Duration {
	shift := max(bucket/perDoubling-1, 0)
	us := uint64(bucket-shift*perDoubling+1) << shift
	return time.Duration(us)*time.Microsecond - 1
}

// MarshalJSON encodes the usual quantiles, in milliseconds.
func (l *Latencies) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"count": l.count, "p50_ms": milliseconds(l.Quantile(0.5)), "p95_ms": milliseconds(l.Quantile(0.95)),
		"p99_ms": milliseconds(l.Quantile(0.99)), "p999_ms": milliseconds(l.Quantile(0.999)), "max_ms": milliseconds(l.max),
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
