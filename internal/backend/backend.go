// Package backend holds the identity and the live state of one backend: the
// numbers that carriers count and the words that decide whether it serves.
// It does no I/O, takes no lock and starts no goroutine.
package backend

import (
	"sync/atomic"
)

// Backend is one server of a pool. Its identity (pool and id) never changes;
// everything that moves is atomic, so any goroutine may read and count.
type Backend struct {
	// Pool is the name of the pool, ID the backend's name in it.
	Pool, ID string
	// Address is host:port, resolved at each dial.
	Address string
	// Source says where the backend came from: "config".
	Source string
	// Weight is the share of work for policies that know weights; at least 1.
	Weight int
	// Labels are the user's words, not to be changed.
	Labels map[string]string
	// Outcomes counts how attempts at b ended, by class number. Set before b
	// is shared; never nil.
	Outcomes interface{ Count(class int) }

	// Recent is what came of the latest attempts, Heads how long their response
	// heads took.
	Recent Recent
	Heads  Latency

	inFlight  atomic.Int64
	state     atomic.Uint32
	trials    trials
	ramp      ramp
	dialBroke atomic.Bool
}

// Begin counts one request or attempt that starts at b.
func (b *Backend) Begin() { b.inFlight.Add(1) }

// End uncounts what Begin counted. Each Begin has exactly one End.
func (b *Backend) End() { b.inFlight.Add(-1) }

// InFlight returns how many requests and attempts have begun and not ended.
func (b *Backend) InFlight() int64 { return b.inFlight.Load() }

// DialFailed notes that a dial to b failed; DialSucceeded that one succeeded.
func (b *Backend) DialFailed() { b.dialBroke.Store(true) }

// DialSucceeded notes that a dial to b succeeded.
func (b *Backend) DialSucceeded() {
	// Read first: the flag is almost always clear, and a store would bounce
	// the cache line between the processors that dial.
	if b.dialBroke.Load() {
		b.dialBroke.Store(false)
	}
}

// Unreachable reports whether the last dial to b failed and none has succeeded
// since, whoever dialled.
func (b *Backend) Unreachable() bool { return b.dialBroke.Load() }

// State returns the state words as they are now, all of one moment.
func (b *Backend) State() State { return unpack(b.state.Load()) }

// SetState replaces the state words. Its only caller is the pool, which writes
// one word at a time for the word's owner, under its lock.
func (b *Backend) SetState(s State) { b.state.Store(s.pack()) }
