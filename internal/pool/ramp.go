package pool

import (
	"time"

	"lb/internal/backend"
)

// firstShare is where a slow start begins, in per mille of the full share.
const firstShare = backend.FullShare / 10

// rampStep is how often the shares of a slow start are brought up to date.
const rampStep = time.Second

// beginRamp begins the slow start of a backend that has come back. Called with
// mu held.
func (p *Pool) beginRamp(w *watch, now time.Time) {
	if p.options.SlowStart <= 0 || p.closed {
		return
	}
	w.ramp = now
	p.climb(w, now)
}

// climb gives w's backend the share that belongs to now. Called with mu held.
func (p *Pool) climb(w *watch, now time.Time) {
	whole, passed := p.options.SlowStart, now.Sub(w.ramp)
	if passed >= whole {
		p.endRamp(w)
		return
	}
	w.backend.SetShare(firstShare + int(float64(backend.FullShare-firstShare)*float64(passed)/float64(whole)))
	step := max(min(rampStep, whole/20), time.Millisecond)
	var t *time.Timer
	t = time.AfterFunc(step, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if w.rampTimer == t && !p.closed {
			p.climb(w, time.Now())
		}
	})
	w.rampTimer = t
}

// endRamp gives w's backend its full share. Called with mu held.
func (p *Pool) endRamp(w *watch) {
	if w.ramp.IsZero() {
		return
	}
	w.rampTimer.Stop()
	w.rampTimer, w.ramp = nil, time.Time{}
	w.backend.SetShare(backend.FullShare)
}
