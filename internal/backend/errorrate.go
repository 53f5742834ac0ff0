package backend

import (
	"math"
	"sync/atomic"
)

// figures are what picks may want to know and cannot find out without a clock
// or a lock. The pool's tick writes them, so they are up to a second old.
type figures struct {
	errorRate atomic.Uint64 // float64 bits
	queued    atomic.Int64
}

// ErrorRate returns the share of attempts that failed in the window of Recent,
// 0 to 1, as it was at the last tick. It reads no clock.
func (b *Backend) ErrorRate() float64 { return math.Float64frombits(b.figures.errorRate.Load()) }

// SetErrorRate sets that share. Its only caller is the pool.
func (b *Backend) SetErrorRate(share float64) { b.figures.errorRate.Store(math.Float64bits(share)) }

// Queued returns how many requests waited at b's pool at the last tick.
func (b *Backend) Queued() int { return int(b.figures.queued.Load()) }

// SetQueued sets that number. Its only caller is the pool.
func (b *Backend) SetQueued(n int) { b.figures.queued.Store(int64(n)) }
