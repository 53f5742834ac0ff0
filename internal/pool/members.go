package pool

import (
	"lb/internal/backend"
	"lb/internal/balance"
)

// Members is one frozen view of a pool; a change makes a new one.
type Members struct {
	// All are the pool's backends in config order.
	All []*backend.Backend
	// Eligible are those that serve, in the same order.
	Eligible []*backend.Backend

	present   []*backend.Backend
	serving   []*backend.Backend // the eligible and those on trial, or who serves in their place
	picker    balance.Picker     // over serving
	unlimited bool               // there is nobody but those kept away: trials are not for rationing
	kept      []*backend.Backend // all who may serve and are not eligible
	reserve   balance.Picker     // over kept, for requests that the others have failed
	limits    Limits
}

// Present returns the members that are there by the word of whoever brought
// them, in the order of All, whatever else is said of them.
func (m *Members) Present() []*backend.Backend { return m.present }

// rebuild freezes the members anew. Called with mu held, or before p is shared.
func (p *Pool) rebuild(all []*backend.Backend) {
	if p.batching {
		return
	}
	p.soonestKnown = false
	settings := p.settings.Load()
	m := &Members{
		All:      all,
		Eligible: ranging(all, backend.Serves, backend.Serves),
		present:  those(all, func(s backend.State) bool { return s.Presence == backend.Present }),
		limits:   settings.Limits,
	}
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
	m.serving = ranging(all, backend.Serves, last)
	m.picker = settings.Policy(m.serving, prev)
	m.kept = ranging(all, backend.OnTrial, backend.LastResort)
	m.reserve = settings.Policy(m.kept, m.picker)
	p.members.Store(m)
}

// batch lets do change many states at once: the members are frozen anew when all
// is done. Called with mu held.
func (p *Pool) batch(do func()) {
	if p.batching {
		do() // a part of the whole
		return
	}
	p.batching = true
	do()
	p.batching = false
	p.rebuild(p.members.Load().All)
}

// ranging returns those of all whose standing is from first to last, in order.
func ranging(all []*backend.Backend, first, last backend.Standing) []*backend.Backend {
	return those(all, func(s backend.State) bool {
		standing := s.Standing()
		return first <= standing && standing <= last
	})
}

// those returns those of all whose state is as told, in order.
func those(all []*backend.Backend, is func(backend.State) bool) []*backend.Backend {
	n := 0
	for _, b := range all {
		if is(b.State()) {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case len(all):
		return all
	}
	chosen := make([]*backend.Backend, 0, n)
	for _, b := range all {
		if is(b.State()) {
			chosen = append(chosen, b)
		}
	}
	return chosen
}

// pick returns a backend that q has claimed a slot of, or nil.
func (m *Members) pick(q *balance.Query) *backend.Backend {
	q.Begin()
	q.Unlimited = m.unlimited
	b := m.picker.Pick(q)
	if b == nil && saves(q) && !q.MetFull() {
		// For this request nobody eligible is left, not even one to wait for: one
		// that is merely kept away for a while may save it.
		q.Unlimited = true
		b = m.reserve.Pick(q)
	}
	return b
}

// anybody reports whether q, which was refused, has somebody to wait for.
func (m *Members) anybody(q *balance.Query) bool {
	if m.limits.Total == 0 {
		return q.MetFull()
	}
	// It was refused before it met anybody, perhaps.
	return untried(m.serving, q) || saves(q) && untried(m.kept, q)
}

// saves reports whether q may go to a backend that is kept away.
func saves(q *balance.Query) bool { return q.Retry && !q.Answered }

func untried(backends []*backend.Backend, q *balance.Query) bool {
	for _, b := range backends {
		if !q.Tried(b) {
			return true
		}
	}
	return false
}

// slots returns how many slots those who serve have together, at most the total;
// 0 if there is no bound, or nobody.
func (m *Members) slots() int {
	sum := 0
	for _, b := range m.Eligible {
		n := b.Limit()
		if n == 0 {
			return m.limits.Total
		}
		sum += n
	}
	if m.limits.Total > 0 {
		sum = min(sum, m.limits.Total)
	}
	return sum
}
