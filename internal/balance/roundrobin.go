package balance

import (
	"sync/atomic"

	"lb/internal/backend"
)

// roundRobin is an exact rotation: one cursor for all requests, moved once by
// each. Weights are ignored.
type roundRobin struct {
	backends []*backend.Backend
	cursor   *atomic.Uint64 // shared by all pickers of the pool, so that a change of the set does not start over
}

func newRoundRobin(eligible []*backend.Backend, prev Picker) Picker {
	cursor := new(atomic.Uint64)
	if p, ok := prev.(*roundRobin); ok {
		cursor = p.cursor
	}
	return &roundRobin{backends: eligible, cursor: cursor}
}

func (p *roundRobin) Pick(q *Query) *backend.Backend {
	n := uint64(len(p.backends))
	if n == 0 {
		return nil
	}
	var at uint64
	if q.Retry {
		at = p.cursor.Load()
	} else {
		at = p.cursor.Add(1) - 1
	}
	for i := range n {
		if b := p.backends[(at+i)%n]; q.Take(b) {
			return b
		}
	}
	return nil
}
