package backend

import "sync/atomic"

// ramp is how far a backend that came back has got with its slow start.
type ramp struct {
	missing atomic.Int32 // per mille of its full share; 0 outside of a slow start
	turns   atomic.Int64 // what it has been offered, in per mille of a turn
}

// FullShare is the share of a backend that is not in its slow start.
const FullShare = 1000

// Share returns which part of its full share of work b is to get now, in per
// mille: FullShare but for the time of a slow start.
func (b *Backend) Share() int { return FullShare - int(b.ramp.missing.Load()) }

// SetShare sets that part. Its only caller is the pool, under its lock.
func (b *Backend) SetShare(perMille int) { b.ramp.missing.Store(int32(FullShare - perMille)) } //nolint:gosec // 0 to 1000

// TakesTurn reports, for policies that offer turns, whether b takes this one:
// always, or during a slow start as many as its share allows, evenly spread.
func (b *Backend) TakesTurn() bool {
	missing := int64(b.ramp.missing.Load())
	if missing == 0 {
		return true
	}
	share := FullShare - missing
	had := b.ramp.turns.Add(share)
	return had/FullShare != (had-share)/FullShare
}
