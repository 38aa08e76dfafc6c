package report

import (
	"math"
	"math/bits"
)

// A Histogram counts durations in nanoseconds, each within 1/64 of its true
// value. The zero value is empty.
type Histogram struct {
	counts [64 * 64]uint32
	n      int64
	maxNS  int64
}

// Add counts one.
func (h *Histogram) Add(ns int64) {
	ns = max(ns, 0)
	h.counts[bucketOf(uint64(ns))]++
	h.n++
	h.maxNS = max(h.maxNS, ns)
}

// bucketOf returns v itself below 64. Above, there are 64 buckets for each power of two,
// by the six bits after the leading one.
func bucketOf(v uint64) int {
	if v < 64 {
		return int(v)
	}
	shift := bits.Len64(v) - 7
	return (shift+1)*64 + int(v>>shift) - 64
}

// bucketStart returns the least value of a bucket.
func bucketStart(bucket int) uint64 {
	if bucket < 64 {
		return uint64(bucket)
	}
	shift := bucket/64 - 1
	return uint64(bucket%64+64) << shift
}

// Latency returns the distribution, nil for an empty histogram.
func (h *Histogram) Latency() *Latency {
	if h.n == 0 {
		return nil
	}
	at := func(q float64) float64 {
		rank, count := int64(math.Ceil(q*float64(h.n))), int64(0)
		for i, c := range h.counts {
			if count += int64(c); count >= rank {
				return Round(float64(bucketStart(i)) / 1e6)
			}
		}
		return Round(float64(h.maxNS) / 1e6)
	}
	return &Latency{P50: at(.5), P99: at(.99), P999: at(.999), Max: Round(float64(h.maxNS) / 1e6), N: h.n}
}

// Round rounds to four significant digits.
func Round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
