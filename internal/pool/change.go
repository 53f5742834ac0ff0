package pool

import (
	"slices"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
)

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

// SetPresence writes the word of b's source.
func (p *Pool) SetPresence(b *backend.Backend, word backend.Presence, reason string) {
	p.write(b, reason, func(s *backend.State, w *watch) {
		s.Presence, w.why.presence = word, reason
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

// SetLimit sets how many may be in flight at b; 0: any number.
func (p *Pool) SetLimit(b *backend.Backend, n int) {
	b.SetLimit(n) // asked for at each pick: members need not be frozen anew
	p.wake(b)
}

// SetLimits replaces the limits. Who waits goes on waiting, also where the queue
// has become shorter.
func (p *Pool) SetLimits(l Limits) {
	p.mu.Lock()
	defer p.tell()
	s := *p.settings.Load()
	s.Limits = l
	p.settings.Store(&s)
	m := *p.members.Load()
	m.limits = l
	p.members.Store(&m)
}

// SetTraits sets b's weight and labels, for the picks from now on.
func (p *Pool) SetTraits(b *backend.Backend, weight int, labels map[string]string) {
	p.mu.Lock()
	defer p.tell()
	b.SetTraits(weight, labels)
	p.rebuild(p.members.Load().All)
}

// SetPolicy has another policy pick from now on.
func (p *Pool) SetPolicy(f balance.Factory) {
	p.mu.Lock()
	defer p.tell()
	s := *p.settings.Load()
	s.Policy = f
	p.settings.Store(&s)
	p.rebuild(p.members.Load().All)
}

// Replace gives the pool other members, in this order. Those that stay keep
// everything; a new one has the state that it brings along, but for its gate:
// that is open, as nobody has met it here. What is in flight at one that leaves
// ends in its own time.
func (p *Pool) Replace(all []*backend.Backend) {
	p.mu.Lock()
	defer p.tell()
	if p.closed {
		return
	}
	all = slices.Clone(all) // frozen from here on
	before := len(p.members.Load().Eligible)
	stays := make(map[*backend.Backend]bool, len(all))
	for _, b := range all {
		stays[b] = true
		if p.watches[b] == nil {
			p.watch(b)
		}
	}
	for b, w := range p.watches {
		if !stays[b] {
			p.unwatch(w)
		}
	}
	p.rebuild(all)
	if before == 0 && len(p.members.Load().Eligible) > 0 {
		p.recall(time.Now())
	}
}

// tell serves those who wait, as what has changed may be to their good, and
// tells of what changed, in order and without a lock held: while one goroutine
// is telling, the changes of others wait for it. Called with mu held, which it
// gives up.
func (p *Pool) tell() {
	p.wake(nil)
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
