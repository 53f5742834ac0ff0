package pool

import (
	"fmt"
	"math"
	"time"

	"lb/internal/backend"
	"lb/internal/breaker"
	"lb/internal/health"
)

// watch is what a pool knows of one member beside its state: the machines
// behind its gate, and why its words are as they are. Guarded by Pool.mu.
type watch struct {
	backend  *backend.Backend
	ejection health.Ejection
	breaker  *breaker.Breaker // nil without one
	tripped  string           // why the breaker opened last
	before   uint32           // the last period of trials before it did
	period   uint32           // the last period of trials
	last     gate             // as regate last saw it
	timer    *time.Timer      // for what the gate does next by itself

	changed   bool          // its state, since the start
	ramp      time.Time     // when its slow start began; zero outside of one
	whole     time.Duration // how long that slow start takes
	rampTimer *time.Timer

	why struct{ admin, presence, health, sync string } // the gate tells its own
}

// gate is what a watch's machines come to.
type gate struct {
	word   backend.Gate
	why    string    // for people; empty for GateOpen
	trials uint32    // for GateTrial
	until  time.Time // for GateEjected and GateBroken
}

// gate joins ejection and breaker. Who cannot even be reached is tried with one
// request: it costs that request the time of a dial.
func (w *watch) gate(now time.Time) gate {
	phase := w.ejection.Phase(now)
	state := breaker.Closed
	if w.breaker != nil {
		w.breaker.Advance(now)
		state = w.breaker.State()
	}
	switch {
	case state == breaker.Open:
		return gate{word: backend.GateBroken, why: "breaker open: " + w.tripped, until: w.breaker.Until()}
	case phase == health.Ejected:
		return gate{word: backend.GateEjected, why: "connect ejection: a dial failed", until: w.ejection.Until()}
	case phase == health.Trying:
		return gate{word: backend.GateTrial, why: "connect ejection is over: one request may try", trials: 1}
	case state == breaker.HalfOpen:
		passed, of := w.breaker.Passed()
		why := fmt.Sprintf("breaker half-open: closes after %d good requests", of)
		return gate{word: backend.GateTrial, why: why, trials: uint32(of - passed)} //nolint:gosec // validated to be few
	}
	return gate{word: backend.GateOpen}
}

// watch begins to watch b, whose gate is open. Called with mu held, or before p
// is shared.
func (p *Pool) watch(b *backend.Backend) {
	w := &watch{backend: b}
	w.why.presence, w.why.health = "so it came into the pool", "not probed yet" // for who begins so
	limits := p.settings.Load().Breaker
	if limits != nil {
		w.breaker = breaker.New(limits)
	}
	b.Recent.SetWindow(windowOf(limits))
	if s := b.State(); s.Gate != backend.GateOpen { // from an earlier stay
		s.Gate = backend.GateOpen
		b.SetState(s)
		b.EndTrials()
	}
	p.watches[b] = w
}

// windowOf is for how long attempts are counted under a breaker with these
// limits, nil for none.
func windowOf(limits *breaker.Settings) time.Duration {
	if limits == nil {
		return backend.DefaultWindow
	}
	return limits.Window
}

// unwatch ends that. Called with mu held.
func (p *Pool) unwatch(w *watch) {
	if w.breaker != nil && w.breaker.State() != breaker.Closed {
		p.tripped--
	}
	p.endRamp(w)
	w.stop()
	delete(p.watches, w.backend)
}

func (w *watch) stop() {
	for _, t := range []*time.Timer{w.timer, w.rampTimer} {
		if t != nil {
			t.Stop()
		}
	}
}

// trialPatience is how long trials may stay without a result before new ones
// are given out: a request that takes a trial to a backend that hangs must not
// keep all others away for as long as it waits.
const trialPatience = 10 * time.Second

// regate brings the backend's gate in line with the machines behind it. reason
// says what happened to them, where the gate's own word does not say it all.
// Called with mu held.
func (p *Pool) regate(w *watch, now time.Time, reason string) {
	if p.closed {
		return
	}
	g := w.gate(now)
	b, s := w.backend, w.backend.State()
	if g.word == w.last.word && g.why == w.last.why && g.until.Equal(w.last.until) && g.trials <= w.last.trials {
		return // as it was, but for the trials that have passed
	}
	if g.word == backend.GateTrial {
		w.period = b.SetTrials(g.trials)
	}
	w.last, s.Gate = g, g.word
	p.soonestKnown = false
	if reason == "" {
		reason = g.why
	}
	var lasts time.Duration
	switch g.word {
	case backend.GateEjected, backend.GateBroken:
		lasts = g.until.Sub(now)
		p.arm(w, lasts)
	case backend.GateTrial:
		p.arm(w, trialPatience)
	default:
		if w.timer != nil {
			w.timer.Stop()
		}
	}
	p.set(w, s, reason, lasts)
	if g.word != backend.GateTrial {
		b.EndTrials() // last: until here pickers offered b for its trials alone
	}
}

// arm makes the watch look at its gate again after d.
func (p *Pool) arm(w *watch, d time.Duration) {
	if w.timer != nil {
		w.timer.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.tell()
		if w.timer != t || p.closed {
			return // set anew meanwhile
		}
		p.timeOver(w, time.Now())
	})
	w.timer = t
}

// timeOver lets a backend be tried whose time out is over, and gives out new
// trials where the old ones brought nothing. Called with mu held.
func (p *Pool) timeOver(w *watch, now time.Time) {
	w.last.trials = 0
	p.regate(w, now, "")
}

// dialFailed takes b out at once: connect ejection.
func (p *Pool) dialFailed(b *backend.Backend, now time.Time) {
	p.mu.Lock()
	defer p.tell()
	w := p.watches[b]
	if w == nil || p.closed {
		return
	}
	if w.ejection.Failed(now) > 0 {
		p.regate(w, now, "")
	}
}

// reached notes that an attempt at b got through: connect ejection is over, and
// a later failed dial counts as the first. An attempt over an old connection,
// while no dial has succeeded since the failed one, says nothing about new
// connections. It costs one atomic load while b's gate is open.
func (p *Pool) reached(b *backend.Backend, now time.Time) {
	if b.State().Gate == backend.GateOpen || b.Unreachable() {
		return
	}
	p.mu.Lock()
	defer p.tell()
	w := p.watches[b]
	if w == nil || p.closed || w.ejection.Phase(now) == health.Calm || b.Unreachable() {
		return // by now, at least
	}
	w.ejection.Succeeded()
	p.regate(w, now, "it was reached")
}

// Accepts notes that b accepts connections, as somebody found who is not the
// traffic: an ejection need not last any longer, and a request may try.
func (p *Pool) Accepts(b *backend.Backend) {
	if b.State().Gate == backend.GateOpen {
		return
	}
	p.mu.Lock()
	defer p.tell()
	if w := p.watches[b]; w != nil && !p.closed {
		p.shorten(w, time.Now(), "connect ejection is over: a probe got through, one request may try")
	}
}

// recall shortens all ejections: the first backend has come back after a total
// outage, and must not carry everything until the others' times out are over.
func (p *Pool) recall(now time.Time) {
	p.batch(func() {
		for _, b := range p.members.Load().All {
			p.shorten(p.watches[b], now, "connect ejection is over: another backend is back, one request may try")
		}
	})
}

func (p *Pool) shorten(w *watch, now time.Time, reason string) {
	if w.ejection.Phase(now) == health.Ejected {
		w.ejection.Shorten(now)
		p.regate(w, now, reason)
	}
}

// failed notes a bad end of an attempt at b, which has been counted, and opens
// b's breaker if that was one too many, or the trial of this period.
func (p *Pool) failed(b *backend.Backend, trial uint32, now time.Time) {
	limits := p.settings.Load().Breaker
	if limits == nil {
		if trial != 0 {
			b.ReturnTrial(trial)
			p.wake(b)
		}
		return
	}
	figures := b.Recent.Figures(now)
	if trial == 0 && !limits.Trips(figures) {
		return
	}
	p.mu.Lock()
	defer p.tell()
	w := p.watches[b]
	if w == nil || p.closed {
		return
	}
	if limits = p.settings.Load().Breaker; limits == nil { // just removed
		if trial != 0 {
			b.ReturnTrial(trial)
		}
		return
	}
	trips := limits.Trips(figures)
	w.breaker.Advance(now)
	switch w.breaker.State() {
	case breaker.Closed:
		if trial != 0 {
			b.ReturnTrial(trial)
		}
		if !trips || !p.mayOpen(b) {
			return
		}
		w.tripped = limits.Why(figures)
		p.tripped++
	case breaker.HalfOpen:
		if trial <= w.before {
			return // no trial, or one that began before the breaker opened
		}
		w.tripped = "a trial failed"
	default:
		return
	}
	w.breaker.Trip(now)
	b.Recent.NextRound()
	w.before = w.period
	p.regate(w, now, "")
}

// mayOpen reports whether b's breaker, which is closed, may open: others that
// serve are left, and not too many are open already. Called with mu held.
func (p *Pool) mayOpen(b *backend.Backend) bool {
	m := p.members.Load()
	others := len(m.Eligible)
	if b.State().Eligible() {
		others--
	}
	// A share such as 0.29 of 100 comes out just below 29.
	most := int(math.Floor(p.settings.Load().MaxOpenShare*float64(len(m.All)) + 1e-9))
	return others > 0 && p.tripped < most
}

// passed counts a good trial.
func (p *Pool) passed(b *backend.Backend, trial uint32, now time.Time) {
	p.mu.Lock()
	defer p.tell()
	w := p.watches[b]
	if w == nil || p.closed {
		return
	}
	reason := ""
	if w.ejection.Phase(now) == health.Trying { // over an old connection, else it was reached
		w.ejection.Answered()
		reason = "it answered on trial"
	}
	if w.breaker != nil && w.breaker.State() == breaker.HalfOpen && trial > w.before {
		w.breaker.Pass(now)
		if w.breaker.State() == breaker.Closed {
			p.tripped--
			b.Recent.Reset()
			reason = "breaker closed: its trials passed"
		}
	}
	if reason != "" {
		p.regate(w, now, reason)
	}
}
