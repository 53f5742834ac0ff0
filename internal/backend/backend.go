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

	inFlight  atomic.Int64
	gate      atomic.Uint32
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

// Gate is the word that passive observation writes: whether failures that
// traffic itself met keep the backend out.
type Gate uint32

const (
	// GateOpen lets traffic through.
	GateOpen Gate = iota
	// GateEjected keeps traffic away for a while after a failed dial.
	GateEjected
)

// SetGate writes the gate. Its only writer is the pool's connect ejection.
func (b *Backend) SetGate(g Gate) { b.gate.Store(uint32(g)) }

// State returns the state words as they are now.
func (b *Backend) State() State { return State{Gate: Gate(b.gate.Load())} }

// State is a set of words about one backend, each with one writer.
type State struct {
	Gate Gate
}

// Eligible reports whether a backend in this state may be picked. It is the
// only place that decides this.
func (s State) Eligible() bool { return s.Gate == GateOpen }

// LastResort reports whether a backend that is not eligible may serve when
// no other one is: one that is merely ejected may have come back already, and
// trying it costs less than refusing.
func (s State) LastResort() bool { return s.Gate == GateEjected }

// States are all values of State.Word, for whoever shows one series for each.
var States = []string{"up", "ejected"}

// Word returns the one word that operators read.
func (s State) Word() string {
	if s.Gate == GateEjected {
		return "ejected"
	}
	return "up"
}

// Reasons says why a backend is not eligible; empty when it is.
func (s State) Reasons() []string {
	if s.Gate == GateEjected {
		return []string{"connect ejection: the last dial failed"}
	}
	return []string{}
}
