package load

import (
	"encoding/json"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies is a histogram of durations, each within 1% of its true value from a
// microsecond to a day. The zero value is empty. It is not safe for concurrent
// use, and must not be copied after the first Add.
type Latencies struct {
	counts *hdrhistogram.Histogram // of microseconds; nil while empty
	max    time.Duration
}

// longest is the end of the histogram's range. Longer durations count as longest,
// except in Max.
const longest = 24 * time.Hour

// Add counts one duration. A negative one counts as zero.
func (l *Latencies) Add(d time.Duration) {
	d = max(d, 0)
	l.max = max(l.max, d)
	l.init()
	_ = l.counts.RecordValue(min(d, longest).Microseconds()) // always in range
}

func (l *Latencies) init() {
	if l.counts == nil {
		l.counts = hdrhistogram.New(1, longest.Microseconds(), 2)
	}
}

// Merge adds all durations of another histogram.
func (l *Latencies) Merge(o *Latencies) {
	if o.counts != nil {
		l.init()
		l.counts.Merge(o.counts)
	}
	l.max = max(l.max, o.max)
}

// Count returns the number of durations.
func (l *Latencies) Count() int64 {
	if l.counts == nil {
		return 0
	}
	return l.counts.TotalCount()
}

// Max returns the longest duration.
func (l *Latencies) Max() time.Duration { return l.max }

// Quantile returns the upper end of the bucket that holds the quantile q, at most
// Max, or 0 if there are no durations.
func (l *Latencies) Quantile(q float64) time.Duration {
	count := float64(l.Count())
	rank := math.Ceil(q * count)
	if rank == count {
		return l.max
	}
	// The library rounds to the nearest rank: it is given one that is whole.
	us := l.counts.ValueAtPercentile(100 * rank / count)
	return min(time.Duration(us+1)*time.Microsecond-1, l.max)
}

// MarshalJSON encodes the usual quantiles, in milliseconds.
func (l *Latencies) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"count": l.Count(), "p50_ms": milliseconds(l.Quantile(0.5)), "p95_ms": milliseconds(l.Quantile(0.95)),
		"p99_ms": milliseconds(l.Quantile(0.99)), "p999_ms": milliseconds(l.Quantile(0.999)), "max_ms": milliseconds(l.max),
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
