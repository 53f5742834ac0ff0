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
	// Limits bound what is in flight, over all backends and in the queue.
	Limits Limits
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

	members atomic.Pointer[Members]
	waiting atomic.Int64 // how many are in the queue; written under its lock
	slowest atomic.Int64 // the highest average of the members' Speed, in nanoseconds

	settings atomic.Pointer[Settings] // never changed, but replaced under mu
	onChange func(Change)

	mu       sync.Mutex // guards what follows, and is held by whoever replaces members
	watches  map[*backend.Backend]*watch
	tripped  int  // how many of them have a breaker that is not closed
	batching bool // see batch
	closed   bool
	untold   []Change // in the order in which they happened
	telling  bool     // somebody is about to tell them

	// When RetryAfter ends, known until a state or a gate changes: it is asked
	// for with each refusal, and there may be thousands of members.
	soonest      time.Time
	soonestKnown bool

	queue queue
}

// New returns a pool. Its members are up, enabled and without a word against
// them; what is known to be otherwise is set before the pool is used.
func New(o Options) *Pool {
	p := &Pool{Name: o.Name, Budget: o.Budget, onChange: o.OnChange, watches: make(map[*backend.Backend]*watch)}
	p.settings.Store(&Settings{
		Policy: o.Policy, Limits: o.Limits, Breaker: o.Breaker, MaxOpenShare: o.MaxOpenShare, SlowStart: o.SlowStart,
	})
	p.queue.born, p.queue.offer = time.Now(), p.offerTo
	for _, b := range o.Backends {
		p.watch(b)
	}
	p.rebuild(o.Backends)
	return p
}

// Members returns the pool as it is now.
func (p *Pool) Members() *Members { return p.members.Load() }

// RetryAfter returns how long it takes until a backend that is kept away may be
// tried again, 0 if there is none.
func (p *Pool) RetryAfter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.soonestKnown {
		p.soonest, p.soonestKnown = time.Time{}, true
		for _, w := range p.watches {
			until := w.last.until
			if until.IsZero() || w.backend.State().Standing() != backend.LastResort {
				continue
			}
			if p.soonest.IsZero() || until.Before(p.soonest) {
				p.soonest = until
			}
		}
	}
	if p.soonest.IsZero() {
		return 0
	}
	return max(0, time.Until(p.soonest))
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
