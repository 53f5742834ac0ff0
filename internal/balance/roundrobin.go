package balance

import (
	"sync/atomic"

	"lb/internal/backend"
)

// roundRobin is an exact rotation: one cursor for all requests, moved once by
// each. Weights are ignored. A backend in its slow start passes on some of its
// turns.
type roundRobin struct {
	backends []*backend.Backend
	*cursors // shared by all pickers of the pool, so that a change of the set does not start over
}

// cursors are two, because retries come in bursts: they must not disturb the
// order that other requests see, nor all go to whoever is next in it.
type cursors struct{ first, retry atomic.Uint64 }

func newRoundRobin(eligible []*backend.Backend, prev Picker) Picker {
	if p, ok := prev.(*roundRobin); ok {
		return &roundRobin{eligible, p.cursors}
	}
	return &roundRobin{eligible, new(cursors)}
}

func (p *roundRobin) Pick(q *Query) *backend.Backend {
	n := uint64(len(p.backends))
	if n == 0 {
		return nil
	}
	if q.Retry {
		return walk(q, p.backends, p.untried(q, p.retry.Add(1)-1))
	}
	// A turn that is passed on moves the cursor, too: else the next one in the
	// row would get it each time, and twice its share.
	for range n {
		b := p.backends[(p.first.Add(1)-1)%n]
		if b.TakesTurn() && q.Take(b) {
			return b
		}
	}
	// Nobody wanted it, so somebody gets it: each in turn here, too.
	return walk(q, p.backends, p.first.Add(1)-1)
}

// untried returns the place of the k-th backend that q has not tried, counted
// round: whose neighbour was tried gets no more than the others.
func (p *roundRobin) untried(q *Query, k uint64) uint64 {
	n := uint64(0)
	for _, b := range p.backends {
		if !q.Tried(b) {
			n++
		}
	}
	if n == 0 {
		return 0
	}
	k %= n
	for i, b := range p.backends {
		if q.Tried(b) {
			continue
		}
		if k == 0 {
			return uint64(i)
		}
		k--
	}
	return 0
}
