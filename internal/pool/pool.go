// Package pool joins what makes a pool serve: who its members are, which of
// them are eligible, and the picker over those.
package pool

import (
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/health"
)

// Members is one frozen view of a pool; a change makes a new one.
type Members struct {
	// All are the pool's backends in config order.
	All []*backend.Backend
	// Eligible are those that serve, in the same order.
	Eligible []*backend.Backend

	picker balance.Picker // over Eligible, or over the last resort when there is none
}

// Change is one backend's change of state, told once.
type Change struct {
	Backend  *backend.Backend
	From, To backend.State
	// Reason says why, for people.
	Reason string
	// For is how long the new state lasts at most; 0 where nobody knows.
	For time.Duration
}

// Pool is a named set of backends with one policy. Safe for concurrent use.
type Pool struct {
	// Name is unique among the pools.
	Name string
	// Budget bounds the retries over this pool.
	Budget *Budget

	factory  balance.Factory
	onChange func(Change)
	members  atomic.Pointer[Members]
	suspects atomic.Int32 // how many ejections have a failure on record

	mu        sync.Mutex // guards what follows, and is held by whoever replaces members
	ejections map[*backend.Backend]*ejection
	closed    bool
	untold    []Change // in the order in which they happened
	telling   bool     // somebody is about to tell them
}

type ejection struct {
	health.Ejection
	timer *time.Timer // brings the backend back
}

func (e *ejection) stop() {
	if e.timer != nil {
		e.timer.Stop()
	}
}

// New returns a pool of the given backends. onChange is told of every change
// of a backend's state, without any lock held.
func New(name string, factory balance.Factory, budget *Budget, backends []*backend.Backend, onChange func(Change)) *Pool {
	p := &Pool{
		Name: name, Budget: budget, factory: factory, onChange: onChange,
		ejections: make(map[*backend.Backend]*ejection),
	}
	p.rebuild(backends)
	return p
}

// Members returns the pool as it is now.
func (p *Pool) Members() *Members { return p.members.Load() }

// TryAcquire picks a backend for q and begins a lease on it, or returns nil if
// none would take the request. The lease ends with Backend.End.
func (p *Pool) TryAcquire(q *balance.Query) *backend.Backend {
	return p.members.Load().picker.Pick(q)
}

// DialFailed takes b out at once: connect ejection.
func (p *Pool) DialFailed(b *backend.Backend) {
	p.mu.Lock()
	e := p.ejections[b]
	if e == nil {
		e = new(ejection)
		p.ejections[b] = e
		p.suspects.Add(1)
	}
	d := e.Failed(time.Now())
	if d == 0 || p.closed {
		p.mu.Unlock()
		return
	}
	e.stop()
	e.timer = time.AfterFunc(d, func() { p.over(b, e) })
	p.set(b, backend.GateEjected, d, "a dial failed")
}

// Reached notes that b answered: it serves again at once, and a later failed
// dial counts as the first. An answer over an old connection, while no dial has
// succeeded since the failed one, says nothing about new connections. It costs
// one atomic load while no backend is under suspicion.
func (p *Pool) Reached(b *backend.Backend) {
	if p.suspects.Load() == 0 || b.Unreachable() {
		return
	}
	p.mu.Lock()
	e := p.ejections[b]
	if e == nil || p.closed {
		p.mu.Unlock()
		return
	}
	delete(p.ejections, b)
	p.suspects.Add(-1)
	e.stop()
	p.set(b, backend.GateOpen, 0, "it was reached")
}

// over lets b serve again when an ejection has lasted its time. A timer that
// fired while b was reached or ejected anew comes too late and does nothing.
func (p *Pool) over(b *backend.Backend, e *ejection) {
	p.mu.Lock()
	if p.closed || p.ejections[b] != e || time.Now().Before(e.Until()) {
		p.mu.Unlock()
		return
	}
	p.set(b, backend.GateOpen, 0, "the ejection is over; the next request finds out")
}

// set writes b's gate and tells of the change, if it is one, with how long it
// lasts at most. Called with mu held, which it gives up.
func (p *Pool) set(b *backend.Backend, g backend.Gate, lasts time.Duration, reason string) {
	from := b.State()
	b.SetGate(g)
	to := b.State()
	if from != to {
		p.rebuild(p.members.Load().All)
		p.untold = append(p.untold, Change{Backend: b, From: from, To: to, Reason: reason, For: lasts})
	}
	p.tell()
}

// RetryAfter returns how long it takes until an ejected backend may be tried
// again, 0 if none is ejected.
func (p *Pool) RetryAfter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var soonest time.Duration
	for b, e := range p.ejections {
		if b.State().Gate != backend.GateEjected {
			continue
		}
		if d := time.Until(e.Until()); soonest == 0 || d < soonest {
			soonest = d
		}
	}
	return max(0, soonest)
}

// Close stops the pool's timers; the pool keeps serving as it is.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, e := range p.ejections {
		e.stop()
	}
}

// rebuild freezes the members anew. Called with mu held, or before p is shared.
func (p *Pool) rebuild(all []*backend.Backend) {
	m := &Members{All: all}
	var lastResort []*backend.Backend
	for _, b := range all {
		switch state := b.State(); {
		case state.Eligible():
			m.Eligible = append(m.Eligible, b)
		case state.LastResort():
			lastResort = append(lastResort, b)
		}
	}
	var prev balance.Picker
	if old := p.members.Load(); old != nil {
		prev = old.picker
	}
	serving := m.Eligible
	if len(serving) == 0 {
		serving = lastResort
	}
	m.picker = p.factory(serving, prev)
	p.members.Store(m)
}

// tell tells of what changed, in order and without a lock held: while one
// goroutine is telling, the changes of others wait for it. Called with mu held,
// which it gives up.
func (p *Pool) tell() {
	if p.telling {
		p.mu.Unlock()
		return
	}
	p.telling = true
	for len(p.untold) > 0 {
		c := p.untold[0]
		p.untold = p.untold[1:]
		if p.onChange != nil {
			p.mu.Unlock()
			p.onChange(c)
			p.mu.Lock()
		}
	}
	p.telling = false
	p.mu.Unlock()
}
