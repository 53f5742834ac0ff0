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
	if q.Retry {
		return p.walk(q, p.cursor.Load())
	}
	// A turn that is passed on moves the cursor, too: else the next one in the
	// row would get it each time, and twice its share.
	for range n {
		b := p.backends[(p.cursor.Add(1)-1)%n]
		if b.TakesTurn() && q.Take(b) {
			return b
		}
	}
	// Nobody wanted it, so somebody gets it: each in turn here, too.
	return p.walk(q, p.cursor.Add(1)-1)
}

// walk asks each backend once, whatever its share.
func (p *roundRobin) walk(q *Query, from uint64) *backend.Backend {
	n := uint64(len(p.backends))
	for i := range n {
		if b := p.backends[(from+i)%n]; q.Take(b) {
			return b
		}
	}
	return nil
}
