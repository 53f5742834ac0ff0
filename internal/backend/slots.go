package backend

import "sync/atomic"

// slots count what is in flight at a backend, and never more than its limit.
type slots struct {
	taken atomic.Int64
	limit atomic.Int64 // 0: none
}

// TryBegin counts one request or attempt that starts at b, unless as many as
// its limit allows are in flight already, and reports whether it did. Each
// TryBegin that did has exactly one End.
func (b *Backend) TryBegin() bool {
	s := &b.slots
	for {
		limit := s.limit.Load()
		if limit == 0 {
			s.taken.Add(1)
			return true
		}
		n := s.taken.Load()
		if n >= limit {
			return false
		}
		if s.taken.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// End uncounts what TryBegin counted.
func (b *Backend) End() { b.slots.taken.Add(-1) }

// InFlight returns how many requests and attempts have begun and not ended.
func (b *Backend) InFlight() int64 { return b.slots.taken.Load() }

// Full reports whether as many are in flight as the limit allows, or more: a
// limit may be lowered below what is in flight.
func (b *Backend) Full() bool {
	limit := b.slots.limit.Load()
	return limit > 0 && b.slots.taken.Load() >= limit
}

// Limit returns how many may be in flight at once; 0 means any number.
func (b *Backend) Limit() int { return int(b.slots.limit.Load()) }

// SetLimit sets that number. What is in flight beyond it ends in its own time.
// Its caller is the pool, which wakes those who wait for a slot.
func (b *Backend) SetLimit(n int) { b.slots.limit.Store(int64(n)) }
