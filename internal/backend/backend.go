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
	// Source says where the backend came from: "config" or "registration".
	Source string
	// Outcomes counts how attempts at b ended, by class number. Set before b
	// is shared; never nil.
	Outcomes interface{ Count(class int) }

	// Recent is what came of the latest attempts, Heads how long their response
	// heads took, and Speed the moving average of that.
	Recent Recent
	Heads  Latency
	Speed  Speed

	slots     slots
	traits    atomic.Pointer[traits]
	state     atomic.Uint32
	trials    trials
	ramp      ramp
	figures   figures
	dialBroke atomic.Bool
}

// traits are what is said of a backend and may be said anew while it serves.
type traits struct {
	weight int
	labels map[string]string
}

// SetTraits sets weight, the share of work for policies that know weights, and
// labels, the user's words, which must not be changed any more. Its caller has
// the pool's picker made anew: pickers may keep both.
func (b *Backend) SetTraits(weight int, labels map[string]string) {
	b.traits.Store(&traits{weight, labels})
}

// Weight returns the share of work for policies that know weights: at least 1,
// which is also that of a backend nobody has said anything of.
func (b *Backend) Weight() int {
	if t := b.traits.Load(); t != nil {
		return max(1, t.weight)
	}
	return 1
}

// Labels returns the user's words, not to be changed.
func (b *Backend) Labels() map[string]string {
	if t := b.traits.Load(); t != nil {
		return t.labels
	}
	return nil
}

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
