package backend

import (
	"math"
	"sync/atomic"
	"time"
)

// Speed is the peak EWMA of how long a backend's response heads take: a slower
// one than the average counts at once and in full, a faster one pulls the
// average down with a time constant of SpeedDecay (Finagle's peak EWMA). It
// takes no lock and does not allocate; of observations that come in the same
// instant some may weigh less. The zero value has observed nothing.
type Speed struct {
	average atomic.Uint64 // float64 bits, nanoseconds
	updated atomic.Int64  // nanoseconds since started
}

// SpeedDecay is the time in which an average that nothing confirms falls to 1/e.
const SpeedDecay = 10 * time.Second

// Observe counts a response head that took d and came at now.
func (s *Speed) Observe(now time.Time, d time.Duration) {
	sample, at := float64(max(d, 1)), int64(now.Sub(started))
	for {
		old := s.average.Load()
		average := math.Float64frombits(old)
		next := sample
		if sample < average {
			keep := math.Exp(-float64(max(0, at-s.updated.Load())) / float64(SpeedDecay))
			next = average*keep + sample*(1-keep)
		}
		if s.average.CompareAndSwap(old, math.Float64bits(next)) {
			s.updated.Store(at)
			return
		}
	}
}

// Decay lets the average fall by what the time since it was last touched is
// worth: an idle backend that once was slow is worth another try. Its only
// caller is the pool, which ticks each second.
func (s *Speed) Decay(now time.Time) {
	at := int64(now.Sub(started))
	passed := at - s.updated.Load()
	old := s.average.Load()
	if old == 0 || passed <= 0 {
		return
	}
	next := math.Float64frombits(old) * math.Exp(-float64(passed)/float64(SpeedDecay))
	if s.average.CompareAndSwap(old, math.Float64bits(next)) {
		s.updated.Store(at)
	}
}

// Average returns the average as it was last written, in nanoseconds; 0 if
// nothing was observed. It reads no clock.
func (s *Speed) Average() float64 { return math.Float64frombits(s.average.Load()) }
