package backend

import (
	"sync/atomic"
	"time"
)

// Recent counts what came of the attempts in the window that is just over, in
// ten slices of it, and how many failed in a row. It is exact, takes no lock
// and does not allocate. The zero value has a window of DefaultWindow.
type Recent struct {
	slices [recentSlices]atomic.Uint64
	row    atomic.Int64
	width  atomic.Int64 // of a slice, in nanoseconds; 0 stands for the default
	round  atomic.Uint32
}

// DefaultWindow is the window of a backend whose pool sets none.
const DefaultWindow = 10 * time.Second

// A slice is one word, replaced as a whole: which slice of time it counts (28
// bits), how many attempts (18 bits), how many of them failed (18 bits). At
// 262,143 in a slice it stops counting.
const (
	recentSlices = 10
	countBits    = 18
	countMask    = 1<<countBits - 1
	whenMask     = 1<<28 - 1
)

// started is where time is told from, so that a clock that is set changes
// nothing. It lies far back, so that a clock which runs behind the one of the
// start, such as that of a test, moves on all the same.
var started = time.Now().Add(-50 * 365 * 24 * time.Hour)

// SetWindow sets the window. If that is another one, what was counted in the old
// one is lost; how many failed in a row is not. Attempts may end at the same
// time: those that are counted by the old width are in no slice of the new one.
// Its only caller is the pool, under its lock.
func (r *Recent) SetWindow(d time.Duration) {
	width := int64(d / recentSlices)
	if width == r.sliceWidth() {
		return
	}
	r.width.Store(width)
	for i := range r.slices {
		r.slices[i].Store(0)
	}
}

// Count counts an attempt that ended at now.
func (r *Recent) Count(now time.Time, failed bool) {
	one := uint64(1) << countBits
	if failed {
		r.row.Add(1)
		one++
	} else if r.row.Load() != 0 {
		r.row.Store(0)
	}
	when := r.when(now)
	slice := &r.slices[when%recentSlices]
	for {
		old := slice.Load()
		next := old + one
		switch {
		case old>>(2*countBits) != when&whenMask:
			next = (when&whenMask)<<(2*countBits) | one
		case old>>countBits&countMask == countMask:
			return
		}
		if slice.CompareAndSwap(old, next) {
			return
		}
	}
}

// Figures are what Recent has counted.
type Figures struct {
	// Total is how many attempts there were, Failed how many of them failed.
	Total, Failed int
	// Row is how many failed since the last one that did not; the window does
	// not bound it.
	Row int
}

// ErrorRate is the share that failed, 0 to 1.
func (f Figures) ErrorRate() float64 {
	if f.Total == 0 {
		return 0
	}
	return float64(f.Failed) / float64(f.Total)
}

// Figures returns what was counted in the window before now.
func (r *Recent) Figures(now time.Time) Figures {
	f := Figures{Row: int(r.row.Load())}
	when := r.when(now)
	for i := range uint64(recentSlices) {
		at := when - i
		if w := r.slices[at%recentSlices].Load(); w>>(2*countBits) == at&whenMask {
			f.Total += int(w >> countBits & countMask)
			f.Failed += int(w & countMask)
		}
	}
	return f
}

// Reset forgets everything: what is counted from now on is about a backend
// that has come back.
func (r *Recent) Reset() {
	r.row.Store(0)
	for i := range r.slices {
		r.slices[i].Store(0)
	}
}

// Round numbers the times between two calls of NextRound, which begins one when
// the backend goes out for answering badly: an attempt that began in an earlier
// round tells how the backend was.
func (r *Recent) Round() uint32 { return r.round.Load() }

// NextRound begins a new round. Its only caller is the pool, under its lock.
func (r *Recent) NextRound() { r.round.Add(1) }

// when numbers the slices of time, from 1: an empty word is about none.
func (r *Recent) when(now time.Time) uint64 {
	return uint64(max(0, now.Sub(started))/time.Duration(r.sliceWidth())) + recentSlices //nolint:gosec // not negative
}

func (r *Recent) sliceWidth() int64 {
	if width := r.width.Load(); width != 0 {
		return width
	}
	return int64(DefaultWindow / recentSlices)
}
