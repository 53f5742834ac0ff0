package backend

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Latency estimates quantiles of the durations of the last 10 to 20 seconds,
// within an eighth of their value (half a microsecond below four). It takes no lock and does not allocate; a
// few observations may get lost when one span of time follows another. The zero
// value is ready.
type Latency struct{ spans [2]span }

// span counts durations by size: four buckets to each doubling of a
// microsecond, up to half an hour.
type span struct {
	when   atomic.Int64 // which span of time this is
	counts [latencyBuckets]atomic.Uint32
}

const (
	latencySpan    = 10 * time.Second
	latencyBuckets = 31 * 4
)

// Observe counts one duration that ended at now.
func (l *Latency) Observe(now time.Time, d time.Duration) {
	when := spanOf(now)
	s := &l.spans[when%2]
	if old := s.when.Load(); old != when && s.when.CompareAndSwap(old, when) {
		for i := range s.counts {
			s.counts[i].Store(0)
		}
	}
	s.counts[bucketOf(d)].Add(1)
}

// Quantiles returns the durations below which the given shares (0 to 1,
// ascending) of the observations lie, and how many there were: all 0 if there
// were none.
func (l *Latency) Quantiles(now time.Time, shares ...float64) (quantiles []time.Duration, n int) {
	var counts [latencyBuckets]int
	when := spanOf(now)
	for i := range l.spans {
		if at := l.spans[i].when.Load(); at != when && at != when-1 {
			continue
		}
		for j := range counts {
			c := int(l.spans[i].counts[j].Load())
			counts[j] += c
			n += c
		}
	}
	quantiles = make([]time.Duration, len(shares))
	below, next := 0, 0
	for j := range counts {
		below += counts[j]
		for ; below > 0 && next < len(shares) && float64(below) >= shares[next]*float64(n); next++ {
			quantiles[next] = middle(j)
		}
	}
	return quantiles, n
}

// spanOf numbers the spans of time, from 1.
func spanOf(now time.Time) int64 { return int64(max(0, now.Sub(started))/latencySpan) + 2 }

// bucketOf returns the bucket of d: the place of its highest bit, in
// microseconds, and the two bits after it.
func bucketOf(d time.Duration) int {
	us := uint64(max(0, d/time.Microsecond))
	if us < 4 {
		return int(us)
	}
	high := bits.Len64(us) - 1
	return min(latencyBuckets-1, (high-1)*4+int(us>>(high-2)&3))
}

// middle is the duration in the middle of a bucket.
func middle(bucket int) time.Duration {
	if bucket < 4 {
		return time.Duration(bucket)*time.Microsecond + 500
	}
	width := time.Microsecond << (bucket/4 - 1)
	return width*time.Duration(4+bucket%4) + width/2
}
