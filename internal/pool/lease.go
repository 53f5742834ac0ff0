package pool

import (
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// Lease is the proof of one request or attempt that has begun at a backend. It
// is Answered at most once, then Ended exactly once. The zero value is no lease.
type Lease struct {
	// Backend is where the attempt goes; nil in the zero value.
	Backend *backend.Backend

	pool    *Pool
	trial   uint32 // the period of the trial that this is, 0 for none
	round   uint32 // of the backend's Recent, when this began
	judged  outcome.Judgement
	counted bool          // in the pool's total
	timed   bool          // it began at begun
	begun   time.Duration // since the queue was born
}

// Answered notes at now that the response head is there, after took, or that
// there will be none: how the attempt went as far as that. Success is only
// counted by End, because the response may still break off.
func (l *Lease) Answered(c outcome.Class, now time.Time, took time.Duration) {
	b, p := l.Backend, l.pool
	l.judged = c.Judgement()
	switch {
	case c == outcome.Unsent:
		p.dialFailed(b, now)
	case l.judged != outcome.Neither:
		p.reached(b, now)
	}
	if c == outcome.Success || c == outcome.Failure {
		b.Heads.Observe(now, took)
	}
	switch l.judged {
	case outcome.Good:
		p.sped(b, now, took)
		if l.trial != 0 {
			p.passed(b, l.trial, now)
		}
	case outcome.Bad:
		p.sped(b, now, max(took, time.Duration(p.slowest.Load())))
		l.count(now, true)
		p.failed(b, l.trial, now)
	default:
		return // End gives the trial back
	}
	l.trial = 0
}

// End ends the lease, and lets those who wait have its slot. c is how the attempt ended: outcome.Cut if a response that
// was well as far as its head broke off.
func (l *Lease) End(c outcome.Class, now time.Time) {
	switch {
	case l.judged == outcome.Good && c == outcome.Cut:
		l.count(now, true)
		l.pool.failed(l.Backend, 0, now)
	case l.judged == outcome.Good:
		l.count(now, false)
	}
	if l.timed {
		l.pool.queue.held.Observe(now, now.Sub(l.pool.queue.born)-l.begun)
	}
	l.free()
}

// free gives back what l holds, to those who wait.
func (l *Lease) free() {
	b, p := l.Backend, l.pool
	if l.trial != 0 {
		b.ReturnTrial(l.trial)
	}
	b.End()
	if p.queue.uncount(l.counted) {
		b = nil // it was not b alone that was full
	}
	*l = Lease{}
	p.wake(b)
}

// count counts what came of the attempt, unless it began before the breaker
// opened last: else those that hang there since would open it once more when
// their time is over, though the backend is well again.
func (l *Lease) count(now time.Time, failed bool) {
	if recent := &l.Backend.Recent; l.round == recent.Round() {
		recent.Count(now, failed)
	}
}
