package pool

import (
	"fmt"
	"time"

	"lb/internal/backend"
)

// Status is what a pool knows of one member, for people.
type Status struct {
	State backend.State
	// Reasons says why it is not eligible, one sentence a word of its state;
	// empty when it is.
	Reasons []string
	// Queued is how many wait that may use a slot of this member: requests for any
	// backend of the pool, and its own deliveries.
	Queued int
	// Breaker is closed, half-open or open, by the number too; "" without one.
	Breaker       string
	BreakerNumber int
}

// Status returns what is known of b; that is little if it is no member any more.
func (p *Pool) Status(b *backend.Backend) Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, now := p.watches[b], time.Now()
	s := Status{State: b.State(), Queued: p.queued(b)}
	if w == nil {
		s.Reasons = []string{"it has left the pool"}
		return s
	}
	s.Reasons = w.reasons(now)
	if w.breaker != nil {
		w.breaker.Advance(now)
		s.Breaker, s.BreakerNumber = w.breaker.State().String(), int(w.breaker.State())
	}
	return s
}

// reasons says why w's backend is not eligible.
func (w *watch) reasons(now time.Time) []string {
	reasons := []string{}
	s := w.backend.State()
	if s.Admin != backend.Enabled {
		reasons = append(reasons, w.why.admin)
	}
	if s.Presence != backend.Present {
		reasons = append(reasons, w.why.presence)
	}
	if s.Health != backend.HealthUp {
		reasons = append(reasons, w.why.health)
	}
	if s.Gate != backend.GateOpen {
		g := w.gate(now)
		reason := g.why
		if !g.until.IsZero() {
			reason += fmt.Sprintf("; tried again in %v", max(0, g.until.Sub(now)).Round(100*time.Millisecond))
		}
		reasons = append(reasons, reason)
	}
	if s.Sync == backend.LaggingExcluded {
		reasons = append(reasons, w.why.sync)
	}
	return reasons
}
