package pool

import (
	"time"

	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/health"
)

// Settings are those of a pool's Options that may change while it serves, and
// mean the same.
type Settings struct {
	// Policy nil: the policy stays as it is.
	Policy       balance.Factory
	Limits       Limits
	Breaker      *breaker.Settings
	MaxOpenShare float64
	SlowStart    time.Duration
}

// Configure has the pool serve under s from now on. Whatever can stay stays:
// what is in flight and who waits, also where a limit has become lower; who is
// ejected; whose breaker is not closed, until its time is over or its trials
// have passed. A slow start under way keeps its length, unless there is to be
// none any more: then it ends. Without a breaker, those that it kept away are
// back at once. Where the breaker's window changes, what was counted in the old
// one is forgotten.
func (p *Pool) Configure(s Settings) {
	p.mu.Lock()
	defer p.tell()
	was := p.settings.Load()
	if s.Policy == nil {
		s.Policy = was.Policy
	}
	changed := !equal(s.Breaker, was.Breaker)
	p.settings.Store(&s)
	now := time.Now()
	p.batch(func() {
		for _, b := range p.members.Load().All {
			w := p.watches[b]
			if changed {
				p.rebreak(w, s.Breaker, now)
			}
			if s.SlowStart <= 0 {
				p.endRamp(w)
			}
		}
	})
}

func equal(a, b *breaker.Settings) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// rebreak gives w's backend a breaker with these limits, nil for none. Called
// with mu held.
func (p *Pool) rebreak(w *watch, limits *breaker.Settings, now time.Time) {
	w.backend.Recent.SetWindow(windowOf(limits))
	switch {
	case w.breaker == nil:
		w.breaker = breaker.New(limits)
	case limits != nil:
		w.breaker.Configure(limits)
		p.regate(w, now, "")
	default:
		if w.breaker.State() != breaker.Closed {
			p.tripped--
		}
		w.breaker = nil
		reason := ""
		if w.ejection.Phase(now) == health.Calm {
			reason = "the pool has no breaker any more"
		}
		p.regate(w, now, reason)
	}
}
