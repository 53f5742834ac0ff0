// Package pool joins what makes a pool serve: who its members are, which of
// them are eligible, and the picker over those.
package pool

import (
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
)

// Members is one frozen view of a pool; a change makes a new one.
type Members struct {
	// All are the pool's backends in config order.
	All []*backend.Backend
	// Eligible are those that serve, in the same order.
	Eligible []*backend.Backend

	picker    balance.Picker // over the eligible and those on trial, or over who serves in their place
	unlimited bool           // there is nobody but those kept away: trials are not for rationing
	reserve   balance.Picker // over all who may serve and are not eligible, for requests that those have failed
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

// Options are what a pool is made of.
type Options struct {
	// Name is unique among the pools.
	Name string
	// Policy makes its pickers.
	Policy balance.Factory
	// Budget bounds the retries over the pool.
	Budget *Budget
	// Backends are its members, in config order.
	Backends []*backend.Backend
	// Breaker has the limits of each backend's breaker; nil: there are none.
	Breaker *breaker.Settings
	// MaxOpenShare is the share of the backends, 0 to 1, whose breakers may be
	// open at once. Whatever it says, the last one that serves is spared.
	MaxOpenShare float64
	// SlowStart is how long a backend that comes back takes to its full share.
	SlowStart time.Duration
	// OnChange, if not nil, is told of every change of a backend's state, in
	// order and without any lock held.
	OnChange func(Change)
}

// Pool is a named set of backends with one policy. Safe for concurrent use.
type Pool struct {
	// Name is unique among the pools.
	Name string
	// Budget bounds the retries over this pool.
	Budget *Budget

	options Options
	members atomic.Pointer[Members]

	mu      sync.Mutex // guards what follows, and is held by whoever replaces members
	watches map[*backend.Backend]*watch
	closed  bool
	untold  []Change // in the order in which they happened
	telling bool     // somebody is about to tell them
}

// New returns a pool. Its members are up, enabled and without a word against
// them; what is known to be otherwise is set before the pool is used.
func New(o Options) *Pool {
	p := &Pool{Name: o.Name, Budget: o.Budget, options: o, watches: make(map[*backend.Backend]*watch)}
	for _, b := range o.Backends {
		w := &watch{backend: b}
		w.why.health = "not probed yet" // for who begins so
		if o.Breaker != nil {
			w.breaker = breaker.New(o.Breaker)
			b.Recent.SetWindow(o.Breaker.Window)
		}
		p.watches[b] = w
	}
	p.rebuild(o.Backends)
	return p
}

// Members returns the pool as it is now.
func (p *Pool) Members() *Members { return p.members.Load() }

// TryAcquire picks a backend for q and begins a lease on it. ok is false if
// none would take the request.
func (p *Pool) TryAcquire(q *balance.Query) (l Lease, ok bool) {
	m := p.members.Load()
	q.Unlimited = m.unlimited
	b := m.picker.Pick(q)
	if b == nil && q.Retry && !q.Answered {
		// For this request nobody eligible is left: one that is merely kept
		// away for a while may save it.
		q.Unlimited = true
		b = m.reserve.Pick(q)
	}
	if b == nil {
		return Lease{}, false
	}
	return p.begun(b, q.Trial()), true
}

// Acquire begins a lease on b itself, whatever its state: deliveries go to every
// backend. If b is on trial and a trial is left, this is one.
func (p *Pool) Acquire(b *backend.Backend) Lease {
	trial, _ := b.TakeTrial()
	b.TryBegin()
	return p.begun(b, trial)
}

// begun returns the lease on b, of which a slot was taken.
func (p *Pool) begun(b *backend.Backend, trial uint32) Lease {
	return Lease{Backend: b, pool: p, trial: trial, round: b.Recent.Round()}
}

// SetAdmin writes the operator's word about b.
func (p *Pool) SetAdmin(b *backend.Backend, word backend.Admin, reason string) {
	p.write(b, reason, func(s *backend.State, w *watch) {
		s.Admin, w.why.admin = word, reason
	})
}

// SetHealth writes the word of the active checks about b.
func (p *Pool) SetHealth(b *backend.Backend, word backend.Health, reason string) {
	p.write(b, reason, func(s *backend.State, w *watch) {
		s.Health, w.why.health = word, reason
	})
}

// SetSync writes the word of the fan-out about b.
func (p *Pool) SetSync(b *backend.Backend, word backend.Sync, reason string) {
	p.write(b, reason, func(s *backend.State, w *watch) {
		s.Sync, w.why.sync = word, reason
	})
}

// write changes b's state as do says, and tells of it.
func (p *Pool) write(b *backend.Backend, reason string, do func(*backend.State, *watch)) {
	p.mu.Lock()
	defer p.tell()
	w := p.watches[b]
	if w == nil || p.closed {
		return
	}
	s := b.State()
	do(&s, w)
	p.set(w, s, reason, 0)
}

// set gives w's backend the state s and notes the change, if it is one. Called
// with mu held.
func (p *Pool) set(w *watch, s backend.State, reason string, lasts time.Duration) {
	b, from := w.backend, w.backend.State()
	if from == s {
		return
	}
	starts := from.Health == backend.HealthUnknown && !w.changed // with all others, as the process does
	w.changed = true
	b.SetState(s)
	before := len(p.members.Load().Eligible)
	p.rebuild(p.members.Load().All)
	p.untold = append(p.untold, Change{Backend: b, From: from, To: s, Reason: reason, For: lasts})
	switch now := time.Now(); {
	case !s.Eligible():
		p.endRamp(w)
	case !from.Eligible():
		if !starts {
			p.beginRamp(w, now)
		}
		if before == 0 {
			p.recall(now)
		}
	}
}

// RetryAfter returns how long it takes until a backend that is kept away may be
// tried again, 0 if there is none.
func (p *Pool) RetryAfter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var soonest time.Duration
	now := time.Now()
	for _, w := range p.watches {
		g := w.gate(now)
		if g.until.IsZero() || w.backend.State().Standing() != backend.LastResort {
			continue
		}
		if d := g.until.Sub(now); soonest == 0 || d < soonest {
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
	for _, w := range p.watches {
		w.stop()
	}
}

// rebuild freezes the members anew. Called with mu held, or before p is shared.
func (p *Pool) rebuild(all []*backend.Backend) {
	m := &Members{All: all, Eligible: ranging(all, backend.Serves, backend.Serves)}
	last := backend.OnTrial // the last standing that serves
	switch {
	case len(m.Eligible) > 0:
	case len(ranging(all, backend.Behind, backend.Behind)) > 0:
		last = backend.Behind
	default:
		last, m.unlimited = backend.LastResort, true
	}
	var prev balance.Picker
	if old := p.members.Load(); old != nil {
		prev = old.picker
	}
	m.picker = p.options.Policy(ranging(all, backend.Serves, last), prev)
	m.reserve = p.options.Policy(ranging(all, backend.OnTrial, backend.LastResort), m.picker)
	p.members.Store(m)
}

// ranging returns those of all whose standing is from first to last, in order.
func ranging(all []*backend.Backend, first, last backend.Standing) []*backend.Backend {
	var chosen []*backend.Backend
	for _, b := range all {
		if standing := b.State().Standing(); first <= standing && standing <= last {
			chosen = append(chosen, b)
		}
	}
	return chosen
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
		if p.options.OnChange != nil {
			p.mu.Unlock()
			p.options.OnChange(c)
			p.mu.Lock()
		}
	}
	p.telling = false
	p.mu.Unlock()
}
