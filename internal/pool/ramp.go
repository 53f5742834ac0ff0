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
	whole := p.settings.Load().SlowStart
	if whole <= 0 || p.closed {
		return
	}
	w.ramp, w.whole = now, whole
	p.climb(w, now)
}

// climb gives w's backend the share that belongs to now. Called with mu held.
func (p *Pool) climb(w *watch, now time.Time) {
	passed := now.Sub(w.ramp)
	if passed >= w.whole {
		p.endRamp(w)
		return
	}
	w.backend.SetShare(firstShare + int(float64(backend.FullShare-firstShare)*float64(passed)/float64(w.whole)))
	step := max(min(rampStep, w.whole/20), time.Millisecond)
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
